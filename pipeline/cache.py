"""Cache of remote shards on the local disk: each is downloaded once a machine, whatever the number of processes and
runs, and kept while there is room.

    FOLDER/shards/FINGERPRINT/SHARD    whole shards; their modification times say when they were last used
    FOLDER/partial/NAME.BYTES.RANDOM/  downloads under way, with the bytes that each will need; RANDOM.over if one was
                                       let in past the budget
    FOLDER/locks/NAME                  lock of the process that downloads; NAME stands for (fingerprint, shard)
    FOLDER/locks/room                  short lock of the process that counts bytes and evicts shards
"""

import logging
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import xxhash

from coma.errors import DataError, UsageError
from coma.pipeline.download import RetryPolicy, Stopped, download
from coma.shards.byte_sizes import parse_bytes
from coma.shards.files import is_remote
from coma.shards.locks import file_lock
from coma.shards.manifest import Manifest
from coma.shards.manifest.column_files import default_folder

log = logging.getLogger(__name__)

DEFAULT_BUDGET_BYTES = 64 * 2**30
_POLL_S = 0.05
_HELD_S = 300.0
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_ROOM = re.compile(r"(?P<name>[0-9a-f]{16}-[0-9a-f]{16})\.(?P<size>\d+)\.[0-9a-f]+(?P<over>\.over)?")


class ShardCache:
    """The shards of a remote split, or of the remote ones in a mixture, as local files; thread-safe.

    Args:
        manifest: the split; its folder is a UPath. Of a mixture, local shards are left where they are.
        folder: where the shards go; by default $COMA_CACHE, $XDG_CACHE_HOME/coma or ~/.cache/coma.
        budget_bytes: the most that all shards in the folder may take together, of this and of other data sets; by
            default $COMA_CACHE_BYTES, or 64 GiB but no more than half of what the disk has room for. The
            least recently used shards are evicted. One shard at most may exceed the budget.
        retry: limits of a download.

    Raises:
        UsageError: the folder cannot be made, or the budget is below 1 byte.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path | None = None,
        budget_bytes: int | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._manifest = manifest
        self._retry = retry or RetryPolicy()
        self._stopped = threading.Event()
        self._failures: dict[int, tuple[float, DataError]] = {}  # by shard, the time and the error
        root = default_folder() if folder is None else folder
        self._all_shards, self._partial, self._locks = root / "shards", root / "partial", root / "locks"
        of_parts = [part for part in manifest.parts if self._holds_shards_of(part)]
        try:
            for made in (*(self._all_shards / part.fingerprint for part in of_parts), self._partial, self._locks):
                made.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # a read-only folder
                self._under_way()  # removes what killed processes have left
            self.budget_bytes = _default_budget(root) if budget_bytes is None else budget_bytes
        except OSError as error:
            raise UsageError(
                f"cache folder {root} cannot be used: {error.strerror}; give another with COMA_CACHE"
            ) from error
        if self.budget_bytes < 1:
            raise UsageError(f"a cache of {self.budget_bytes} bytes holds nothing; give COMA_CACHE_BYTES=64GiB")
        self.least_bytes = [
            least if self.holds(shard) else 0 for shard, least in enumerate(manifest.least_bytes.tolist())
        ]
        """[S] bytes that each shard has at least, as its tar's end marks come on top; 0 for a local one."""

    def holds(self, shard: int) -> bool:
        """Whether a shard is read from this cache: not a local one of a mixture."""
        return self._holds_shards_of(self._manifest.home_of_shard(shard))

    def open(self, shard: int) -> int:
        """Return a file descriptor of a shard, which is downloaded first if it is not in the cache.

        Raises:
            DataError: it cannot be downloaded, or the disk is full.
            Stopped: `stop` was called.
        """
        descriptor = self._present(shard)
        if descriptor is not None:
            return descriptor
        began = time.monotonic()
        with self._locked(shard):
            descriptor = self._present(shard)  # another process may have been faster
            if descriptor is None and shard in self._failures and self._failures[shard][0] > began:
                raise self._failures[shard][1]  # another thread has just used up all tries
            return self._download(shard) if descriptor is None else descriptor

    def fetch(self, shard: int, keep: Collection[int]) -> bool:
        """Download a shard ahead of its use, unless someone does so already.

        Args:
            shard: its number.
            keep: shards that must not be evicted for it.

        Returns:
            False if there is no room.

        Raises:
            DataError, Stopped: as in `open`.
        """
        if not self.holds(shard) or self._path(shard).exists():  # a read-only folder gives no lock, nor is one needed
            return True
        with self._lock(self._name(shard)) as lock:
            if lock is None or self._path(shard).exists():
                return True
            kept = {self._path(other) for other in keep if self.holds(other)}
            room = self._reserve(shard, kept, ahead=True)
            if room is not None:
                os.close(self._download_into(room, shard))
            return room is not None

    def renew(self, shard: int, descriptor: int) -> bool:
        """Download a shard again because one of its samples is not what the manifest says.

        Args:
            shard: its number.
            descriptor: file descriptor from which the bad bytes were read.

        Returns:
            False if it has been downloaded again before: then the store's own copy is bad.

        Raises:
            DataError, Stopped: as in `open`.
        """
        bad = os.fstat(descriptor).st_ino
        with self._locked(shard) as lock:
            path = self._path(shard)
            if path.exists() and path.stat().st_ino != bad:
                return True  # another process has done so
            if os.pread(lock, 32, 0).strip() == str(bad).encode():
                return False
            log.warning("shard %s in the cache is damaged; downloading it again", path.name)
            fresh = self._download(shard)
            os.pwrite(lock, str(os.fstat(fresh).st_ino).encode().ljust(20), 0)
            os.close(fresh)
            return True

    def stop(self) -> None:
        """End all downloads; the cache starts none afterwards."""
        self._stopped.set()

    def _holds_shards_of(self, part: Manifest) -> bool:
        return len(self._manifest.parts) == 1 or is_remote(part.folder)

    def _present(self, shard: int) -> int | None:
        try:
            descriptor = os.open(self._path(shard), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if os.fstat(descriptor).st_size < self.least_bytes[shard]:
            os.close(descriptor)
            return None
        with suppress(OSError):  # another user's cache may be read-only for us
            os.utime(descriptor)
        return descriptor

    def _download(self, shard: int) -> int:
        """Download as soon as there is room. The caller holds the shard's lock."""
        while (room := self._reserve(shard, set(), ahead=False)) is None:
            self._pause()
        return self._download_into(room, shard)

    def _download_into(self, room: Path, shard: int) -> int:
        source = self._manifest.shard_path(shard)

        def fresh() -> Path:
            for left in room.iterdir():
                left.unlink()
            file = room / os.urandom(4).hex()
            file.touch()
            return file

        try:
            whole = download(source, fresh, self.least_bytes[shard], self._retry, self._stopped)
            descriptor = os.open(whole, os.O_RDONLY | os.O_CLOEXEC)  # ours, whoever makes room next
            try:
                whole.replace(self._path(shard))
            except OSError:
                os.close(descriptor)
                raise
            return descriptor
        except DataError as error:
            self._failures[shard] = time.monotonic(), error
            raise
        except OSError as error:
            raise self._no_place(error) from None
        finally:
            shutil.rmtree(room, ignore_errors=True)

    def _reserve(self, shard: int, keep: Collection[Path], *, ahead: bool) -> Path | None:
        """Evict shards and make the folder to download a shard into; None if there is no room now.

        A shard that a reader waits for is let in even past the budget, which may be smaller than it, one at a time.
        """
        name, size = self._name(shard), self.least_bytes[shard]
        cache = self._all_shards.parent
        with self._held("room", f"cache folder {cache}: another process has counted its bytes"):
            try:
                under_way = self._under_way()
                files = _cached(self._all_shards)
                limit = min(self.budget_bytes, self._disk_bytes(files))
                used = sum(int(room["size"]) for room in under_way)
                kept = sum(size for path, _, size in files if path in keep)
                over = used + kept + size > limit
                if over and (ahead or any(room["over"] for room in under_way)):
                    return None  # before anything is evicted
                used += sum(size for _, _, size in files)
                for path, _, freed in files:
                    if used + size <= limit:
                        break
                    if path not in keep:
                        path.unlink(missing_ok=True)  # a process that has it open can go on reading
                        used -= freed
                room = self._partial / f"{name}.{size}.{os.urandom(4).hex()}{'.over' if over else ''}"
                room.mkdir()
            except OSError as error:
                raise self._no_place(error) from None
            return room

    def _under_way(self) -> list[re.Match[str]]:
        """The folders of downloads under way; those that killed processes have left are removed."""
        rooms = []
        for room in self._partial.iterdir():
            if match := _ROOM.fullmatch(room.name):
                with file_lock(self._locks / match["name"]) as lock:
                    if lock is None:
                        rooms.append(match)
                    else:
                        shutil.rmtree(room, ignore_errors=True)
        return rooms

    def _disk_bytes(self, files: list[tuple[Path, int, int]]) -> int:
        """Bytes that the cache could take if nothing else on its disk changed."""
        ours = [*files, *_files(self._partial)]
        return shutil.disk_usage(self._partial).free + sum(size for _, _, size in ours)

    def _no_place(self, error: OSError) -> DataError:
        return DataError(
            f"cache folder {self._all_shards.parent} cannot take shards ({error.strerror}); free some room, give "
            "less with COMA_CACHE_BYTES or another folder with COMA_CACHE"
        )

    @contextmanager
    def _lock(self, name: str) -> Iterator[int | None]:
        """Take a lock, or yield None if another process or thread holds it."""
        with ExitStack() as stack:
            try:
                lock = stack.enter_context(file_lock(self._locks / name))
            except OSError as error:
                raise self._no_place(error) from None
            yield lock

    def _locked(self, shard: int) -> AbstractContextManager[int]:
        """Hold a shard's lock, waiting for the present holder as long as its download makes progress."""
        name = self._name(shard)
        return self._held(
            name,
            f"shard {self._manifest.shards[shard]}: another process has held its download",
            lambda: [file for room in self._partial.glob(f"{name}.*") for file in _files(room)],
        )

    @contextmanager
    def _held(self, name: str, trouble: str, progress: Callable[[], object] = lambda: None) -> Iterator[int]:
        """Hold a lock, waiting for the present holder while `progress` returns changing values."""
        seen, since = None, time.monotonic()
        while True:
            with self._lock(name) as lock:
                if lock is not None:
                    yield lock
                    return
            current = progress()
            if current != seen:
                seen, since = current, time.monotonic()
            elif time.monotonic() - since > _HELD_S:
                raise DataError(
                    f"{trouble} for {_HELD_S:.0f} s without getting on; end it (fuser {self._locks / name}), "
                    "then start again"
                )
            self._pause()

    def _pause(self) -> None:
        if self._stopped.wait(_POLL_S):
            raise Stopped

    def _path(self, shard: int) -> Path:
        return self._all_shards / self._manifest.home_of_shard(shard).fingerprint / self._manifest.shards[shard]

    def _name(self, shard: int) -> str:
        name = xxhash.xxh3_64_hexdigest(self._manifest.shards[shard].encode())
        return f"{self._manifest.home_of_shard(shard).fingerprint}-{name}"


def _default_budget(root: Path) -> int:
    if given := os.environ.get("COMA_CACHE_BYTES"):
        return parse_bytes(given, "COMA_CACHE_BYTES")
    ours = sum(size for _, _, size in _cached(root / "shards"))
    return min(DEFAULT_BUDGET_BYTES, (shutil.disk_usage(root).free + ours) // 2)


def _cached(folder: Path) -> list[tuple[Path, int, int]]:
    """The shards in the cache, the least recently used first; other files in the folder are left out.

    A time in the future comes from a wrong clock and counts as the oldest: else the shard would never be evicted.
    """
    now_ns = time.time_ns()
    files = [file for data in folder.iterdir() if _FINGERPRINT.fullmatch(data.name) for file in _files(data)]
    return sorted(files, key=lambda file: file[1] if file[1] <= now_ns else 0)


def _files(folder: Path) -> list[tuple[Path, int, int]]:
    """The files in a folder: path, modification time in ns, bytes.

    Other processes may remove files and folders meanwhile: `os.walk` skips those, `Path.rglob` does not.
    """
    files = []
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            with suppress(FileNotFoundError):
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    files.append((path, status.st_mtime_ns, status.st_size))
    return files
