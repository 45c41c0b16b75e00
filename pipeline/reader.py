"""Reading of samples from the shards of a split, checked against the manifest before anything decodes them."""

import errno
import logging
import os
import stat
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from coma.errors import DataError
from coma.pipeline.arrays import make_header_check
from coma.pipeline.cache import ShardCache
from coma.shards.files import without_credentials
from coma.shards.manifest import Manifest

log = logging.getLogger(__name__)

Bytes = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]

_MOST_OPEN_FILES = 256
"""Limit for a mixture; a process may have 1,024 as a rule."""


@dataclass(frozen=True)
class Unreadable:
    """A sample that is not what the manifest says, with the reason."""

    reason: str


class ShardReader:
    """Reader of samples from local shards, or from remote ones through a local cache; not thread-safe.

    A sample whose bytes cannot be read, or do not have the manifest's hash, is `Unreadable`. A shard that is
    gone or cut short is a DataError: the data set is damaged, and no substitute makes up for a missing shard.
    A cached shard is downloaded once more before either.

    Args:
        manifest: the split.
        open_files: number of shards of each data set kept open, at most; the least recently used is closed.
        cache: of a remote split; by default one in the default folder.
    """

    def __init__(self, manifest: Manifest, open_files: int = 64, cache: ShardCache | None = None) -> None:
        self._manifest = manifest
        self._open_files = min(open_files * len(manifest.parts), max(open_files, _MOST_OPEN_FILES))
        self._cache = ShardCache(manifest) if cache is None and manifest.is_remote else cache
        self._files: OrderedDict[int, int] = OrderedDict()  # shard number → file descriptor

    def read(self, samples: Sequence[int] | Int64Array) -> list[Bytes | Unreadable]:
        """Read the encoded images of these samples, each [bytes] uint8, in the order asked for.

        Raises:
            DataError: a shard is missing or too short; the message names it.
        """
        for sample in samples:
            self._advise(int(sample))
        return [self._read_one(int(sample)) for sample in samples]

    def close(self) -> None:
        """Close all open shards."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _advise(self, sample: int) -> None:
        """Ask the kernel to read ahead, so that a cold disk gets the requests of a whole batch at once."""
        m = self._manifest
        descriptor = self._descriptor(int(m.shard_id[sample]))
        os.posix_fadvise(descriptor, int(m.offset[sample]), int(m.size[sample]), os.POSIX_FADV_WILLNEED)

    def _read_one(self, sample: int) -> Bytes | Unreadable:
        shard = int(self._manifest.shard_id[sample])
        try:
            data = self._read_checked(sample)
        except _CutShort:
            if not self._renewed(shard):
                raise
            return self._read_checked(sample)
        if isinstance(data, Unreadable) and self._renewed(shard):
            return self._read_checked(sample)
        return data

    def _renewed(self, shard: int) -> bool:
        """Download a cached shard again; False if that cannot help or fails."""
        if self._cache is None or not self._cache.holds(shard):
            return False
        try:
            renewed = self._cache.renew(shard, self._descriptor(shard))
        except DataError as error:
            log.warning("%s", error)
            return False
        if renewed:
            os.close(self._files.pop(shard))
        return renewed

    def _read_checked(self, sample: int) -> Bytes | Unreadable:
        m = self._manifest
        shard, offset, size = int(m.shard_id[sample]), int(m.offset[sample]), int(m.size[sample])
        try:
            data = _pread(self._descriptor(shard), offset, size)
        except OSError as error:
            return Unreadable(f"read failed: {error.strerror}")
        if len(data) < size:
            raise _CutShort(
                f"shard {self._place(shard)} is cut short: a sample lacks its last "
                f"{size - len(data)} bytes; copy the shard again, or shard again"
            )
        actual, expected = xxhash.xxh3_64_intdigest(data), int(m.xxh3_64[sample])
        if actual != expected:
            return Unreadable(f"hash {actual:016x} is not the manifest's {expected:016x}")
        return np.frombuffer(data, np.uint8)

    def _descriptor(self, shard: int) -> int:
        if shard not in self._files:
            while len(self._files) >= self._open_files:
                os.close(self._files.popitem(last=False)[1])
            try:
                self._files[shard] = self._open(shard)
            except OSError as error:
                raise DataError(
                    f"shard {self._place(shard)} cannot be opened ({error.strerror}); copy it again, or shard again"
                ) from error
        self._files.move_to_end(shard)
        return self._files[shard]

    def _open(self, shard: int) -> int:
        if self._cache is not None and self._cache.holds(shard):
            return self._cache.open(shard)
        return _open_file(self._manifest.shard_path(shard))

    def _place(self, shard: int) -> str:
        return without_credentials(str(self._manifest.shard_path(shard)))


class _CutShort(DataError):
    """A shard ends before a sample does."""


class SampleReader:
    """Reader of samples that the decoder can be given: with the right hash and a header that it understands."""

    def __init__(self, manifest: Manifest, batch_size: int, cache: ShardCache | None = None) -> None:
        self._manifest = manifest
        self._reader = ShardReader(manifest, cache=cache)
        self._headers = make_header_check(manifest.pixels, batch_size)

    def read(self, samples: Int64Array) -> list[Bytes | Unreadable]:
        """Read samples as `ShardReader.read` does, at most `batch_size`; faulty headers make them `Unreadable` too."""
        images = self._reader.read(samples)
        whole = [position for position, data in enumerate(images) if not isinstance(data, Unreadable)]
        data = [data for data in images if not isinstance(data, Unreadable)]
        ids = samples[whole]
        faults = self._headers.faults(data, self._manifest.width[ids], self._manifest.height[ids])
        for at, reason in faults.items():
            images[whole[at]] = Unreadable(f"decoding failed: {reason}")
        return images

    def read_one(self, sample: int) -> Bytes | None:
        """Read one sample; None if it is `Unreadable`."""
        (data,) = self.read(np.array([sample], np.int64))
        return None if isinstance(data, Unreadable) else data

    def close(self) -> None:
        """Close all open shards."""
        self._reader.close()


def _open_file(path: Path) -> int:
    """Open a regular file; OSError for anything else, as a folder would open and a pipe wait for its writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a file")
    return descriptor


def _pread(descriptor: int, offset: int, size: int) -> bytes:
    """Read a range of a file, by several calls if need be; the result is short only at the end of the file."""
    data = os.pread(descriptor, size, offset)
    if len(data) == size or not data:
        return data
    parts = [data]
    while (got := sum(map(len, parts))) < size and (more := os.pread(descriptor, size - got, offset + got)):
        parts.append(more)
    return b"".join(parts)
