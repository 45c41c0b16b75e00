"""A file as if it were its bytes: only the ranges that are asked for are read.

It is not memory-mapped: a file that is cut meanwhile raises an error instead of killing the process, and pages that
were read do not count as the process's memory.
"""

import os
import stat
from pathlib import Path

from coma.shards.images.formats import BadImageError
from coma.shards.sources.listing import WHOLE_FILE, SourceImage, clamped


class FileBytes:
    """The bytes of a file, or of a range of a container, read as they are asked for."""

    def __init__(self, root: Path, image: SourceImage) -> None:
        """Open an image.

        Raises BadImageError if it has changed since it was listed, OSError if it cannot be read.
        """
        self._descriptor = os.open(root / image.file, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(self._descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError("not a regular file")
            self._start, self._bytes = max(0, image.offset), image.size
            if image.offset == WHOLE_FILE and status.st_size != self._bytes:
                raise BadImageError(f"changed: {self._bytes} bytes when listed, {status.st_size} when read")
            if clamped(status.st_mtime_ns) != image.mtime_ns:
                raise BadImageError("changed: written to since it was listed")
        except BaseException:
            os.close(self._descriptor)
            raise

    def __len__(self) -> int:
        """Return the number of bytes."""
        return self._bytes

    def __getitem__(self, key: slice, /) -> bytes:
        """Read a range. Raises BadImageError if the file has become shorter meanwhile, OSError."""
        start, stop, _ = key.indices(self._bytes)
        pieces: list[bytes] = []
        while start < stop:
            piece = os.pread(self._descriptor, stop - start, self._start + start)
            if not piece:
                raise BadImageError("changed: it became shorter while it was read")
            pieces.append(piece)
            start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def startswith(self, prefix: bytes, /) -> bool:
        """Whether the file begins with these bytes."""
        return self[: len(prefix)] == prefix

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
