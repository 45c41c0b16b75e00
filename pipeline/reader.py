"""Byte ranges out of the shards of one split, checked against the manifest before anything decodes them."""

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
from coma.pipeline.cache import ShardCache
from coma.pipeline.decode import HeaderCheck
from coma.shards.files import is_remote, without_credentials
from coma.shards.manifest import Manifest

log = logging.getLogger(__name__)

Bytes = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Unreadable:
    """One sample that is not what the manifest says; the others are not affected."""

    reason: str


class ShardReader:
    """Reads samples of shards on this disk, or of remote ones by way of a cache on it. For one thread at a time.

    A sample whose bytes cannot be read, or do not have the manifest's hash, is `Unreadable`. A shard that is
    gone or cut short is a DataError: the data set is damaged, and no substitute makes up for a missing shard.
    Before either is said of a cached shard it is downloaded once more.

    Args:
        manifest: the split.
        open_files: at most as many shards are kept open, the least recently used is closed.
        cache: of a remote split; by default one in the default folder.
    """

    def __init__(self, manifest: Manifest, open_files: int = 64, cache: ShardCache | None = None) -> None:
        self._manifest = manifest
        self._open_files = open_files
        self._cache = ShardCache(manifest) if cache is None and is_remote(manifest.folder) else cache
        self._files: OrderedDict[int, int] = OrderedDict()  # shard number → file descriptor

    def read(self, samples: Sequence[int] | Int64Array) -> list[Bytes | Unreadable]:
        """The encoded images of these samples, each [bytes] uint8, in the order asked for.

        Raises:
            DataError: naming the shard, if one is missing or too short.
        """
        for sample in samples:
            self._advise(int(sample))
        return [self._read_one(int(sample)) for sample in samples]

    def close(self) -> None:
        """Close the shards."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _advise(self, sample: int) -> None:
        """Let the kernel start on the whole batch, so that a cold disk sees many requests at a time."""
        m = self._manifest
        descriptor = self._descriptor(int(m.shard_id[sample]))
        os.posix_fadvise(descriptor, int(m.offset[sample]), int(m.size[sample]), os.POSIX_FADV_WILLNEED)

    def _read_one(self, sample: int) -> Bytes | Unreadable:
        shard = int(self._manifest.shard_id[sample])
        try:
            found = self._read_checked(sample)
        except _CutShort:
            if not self._renewed(shard):
                raise
            return self._read_checked(sample)
        if isinstance(found, Unreadable) and self._renewed(shard):
            return self._read_checked(sample)
        return found

    def _renewed(self, shard: int) -> bool:
        """Whether a cached shard was downloaded again, so that reading again may help."""
        if self._cache is None:
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
        found, expected = xxhash.xxh3_64_intdigest(data), int(m.xxh3_64[sample])
        if found != expected:
            return Unreadable(f"hash {found:016x} is not the manifest's {expected:016x}")
        return np.frombuffer(data, np.uint8)

    def _descriptor(self, shard: int) -> int:
        if shard not in self._files:
            while len(self._files) >= self._open_files:
                os.close(self._files.popitem(last=False)[1])
            try:
                self._files[shard] = self._open(shard)
            except OSError as error:
                raise DataError(
                    f"shard {self._place(shard)} cannot be opened ({error.strerror}); "
                    "copy it again, or shard again"
                ) from error
        self._files.move_to_end(shard)
        return self._files[shard]

    def _open(self, shard: int) -> int:
        if self._cache is not None:
            return self._cache.open(shard)
        return _open_file(self._manifest.folder / self._manifest.shards[shard])

    def _place(self, shard: int) -> str:
        return without_credentials(str(self._manifest.folder / self._manifest.shards[shard]))


class _CutShort(DataError):
    """A shard ends before a sample does."""


class SampleReader:
    """Reads samples that the decoder can be given: of the right hash, with a header it understands."""

    def __init__(self, manifest: Manifest, batch_size: int, cache: ShardCache | None = None) -> None:
        self._manifest = manifest
        self._reader = ShardReader(manifest, cache=cache)
        self._headers = HeaderCheck(batch_size)

    def read(self, samples: Int64Array) -> list[Bytes | Unreadable]:
        """As `ShardReader.read`. b samples, at most `batch_size`."""
        found = self._reader.read(samples)
        whole = [position for position, data in enumerate(found) if not isinstance(data, Unreadable)]
        data = [data for data in found if not isinstance(data, Unreadable)]
        ids = samples[whole]
        faults = self._headers.faults(data, self._manifest.width[ids], self._manifest.height[ids])
        for at, reason in faults.items():
            found[whole[at]] = Unreadable(f"decoding failed: {reason}")
        return found

    def read_one(self, sample: int) -> Bytes | None:
        """One sample, None if it is no good."""
        (found,) = self.read(np.array([sample], np.int64))
        return None if isinstance(found, Unreadable) else found

    def close(self) -> None:
        """Close the shards."""
        self._reader.close()


def _open_file(path: Path) -> int:
    """A descriptor of a regular file. A folder would open, and a pipe wait for its writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a file")
    return descriptor


def _pread(descriptor: int, offset: int, size: int) -> bytes:
    """Read a range that one call may return in parts; short only at the end of the file."""
    data = os.pread(descriptor, size, offset)
    if len(data) == size or not data:
        return data
    parts = [data]
    while (got := sum(map(len, parts))) < size and (more := os.pread(descriptor, size - got, offset + got)):
        parts.append(more)
    return b"".join(parts)
