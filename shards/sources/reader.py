"""Reading of single images of a source, with a check that they have not changed since they were listed."""

import os
import stat
from collections import OrderedDict
from pathlib import Path

from coma.errors import ComaError, DataError
from coma.shards.images.formats import BadImageError
from coma.shards.images.prepare import PixelOptions, Prepared, prepare_image
from coma.shards.images.prepare_array import prepare_array
from coma.shards.sources.listing import MAX_IMAGE_BYTES, WHOLE_FILE, SourceImage, clamped, printable

_OPEN_CONTAINERS = 16


class SourceReader:
    """Reads images below `root`, and keeps the most recently used containers open."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._containers: OrderedDict[str, int] = OrderedDict()

    def read(self, image: SourceImage) -> bytes:
        """Read one image.

        Raises BadImageError if it is to be set aside unread or has changed since it was listed, OSError if it cannot
        be read (pipes are not, as they would block), DataError if the container that it is in has changed.
        """
        if image.refused is not None:
            raise BadImageError(image.refused)
        if image.size > MAX_IMAGE_BYTES:
            raise BadImageError(f"bomb: {image.size} bytes, the limit is {MAX_IMAGE_BYTES}")
        if image.offset != WHOLE_FILE:
            return self._read_range(image)
        descriptor = os.open(self._root / image.file, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError("not a regular file")
            if status.st_size != image.size:
                raise BadImageError(f"changed: {image.size} bytes when listed, {status.st_size} when read")
            data = _read_bytes(descriptor, image.size + 1, None)
        finally:
            os.close(descriptor)
        if len(data) != image.size:
            raise BadImageError("changed: while it was read")
        if clamped(status.st_mtime_ns) != image.mtime_ns:
            raise BadImageError("changed: written to since it was listed")
        return data

    def prepare(self, image: SourceImage, options: PixelOptions) -> Prepared:
        """Read one image, check it, and convert or re-encode it as `prepare_image` or `prepare_array` does.

        Raises as `read_or_set_aside`, and BadImageError if it is no good image.
        """
        prepare = prepare_image if options.channels is None else prepare_array
        return prepare(self.read_or_set_aside(image), options)

    def read_or_set_aside(self, image: SourceImage) -> bytes:
        """Read one image or mask.

        Raises BadImageError if it is to be set aside, ComaError if the source as a whole has gone.
        """
        try:
            return self.read(image)
        except OSError as error:
            if not self._root.exists():
                raise ComaError(f"{self._root} has gone; once it is back, the same command resumes") from error
            if image.size >= 0 and isinstance(error, FileNotFoundError):
                raise BadImageError("vanished: it was there when the source was listed") from None
            raise BadImageError(f"unreadable: {error.strerror or error}") from None

    def close(self) -> None:
        """Close the containers."""
        while self._containers:
            os.close(self._containers.popitem()[1])

    def _read_range(self, image: SourceImage) -> bytes:
        data = _read_bytes(self._container(image), image.size, image.offset)
        if len(data) != image.size:
            raise self._changed(image.file)
        return data

    def _container(self, image: SourceImage) -> int:
        if image.file not in self._containers:
            while len(self._containers) >= _OPEN_CONTAINERS:
                os.close(self._containers.popitem(last=False)[1])
            try:
                descriptor = os.open(self._root / image.file, os.O_RDONLY)
            except OSError as error:
                raise DataError(
                    f"{self._root / printable(image.file)} cannot be read ({error.strerror}); once it is "
                    "back, the same command resumes the run"
                ) from None
            self._containers[image.file] = descriptor
            if clamped(os.fstat(descriptor).st_mtime_ns) != image.mtime_ns:
                raise self._changed(image.file)
        self._containers.move_to_end(image.file)
        return self._containers[image.file]

    def _changed(self, file: str) -> DataError:
        return DataError(
            f"{self._root / printable(file)} was changed while its images were read; run the command again"
        )


def _read_bytes(descriptor: int, size: int, offset: int | None) -> bytes:
    """Read `size` bytes, fewer only at the end of the file."""
    pieces: list[bytes] = []
    left = size
    while left > 0:
        piece = os.read(descriptor, left) if offset is None else os.pread(descriptor, left, offset + size - left)
        if not piece:
            break
        pieces.append(piece)
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
