"""NumPy's files (.npy): facts of their headers, and windows without a copy of the rest.

The order of axes that the stream reads is [H, W, C], or [H, W] for one channel.
Legend: H, W sides in pixels, C channels.
"""

import io
from functools import lru_cache
from typing import Any

import numpy as np

from coma.shards.images.array_files.facts import ArrayFacts, Pixels, Window
from coma.shards.images.formats import BadImageError, one_line
from coma.shards.images.readable import Readable

MAGIC = b"\x93NUMPY"
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _header_bytes(data: Readable) -> int:
    """Return how many bytes the header takes, up to 64 kB."""
    size = 10 + int.from_bytes(data[8:10], "little") if data[6:7] == b"\x01" else 1 << 16
    return min(size, 1 << 16)


@lru_cache(maxsize=256)
def _parsed(header: bytes) -> tuple[tuple[int, ...], bool, "np.dtype[Any]", int]:
    """Parse a header, which many files share; return shape, order, type, and where the values start."""
    file = io.BytesIO(header)
    try:
        version = np.lib.format.read_magic(file)
        reader = _HEADER_READERS.get(version)
        if reader is None:
            raise BadImageError(f"unsupported format: .npy of version {version[0]}.{version[1]}")
        shape, fortran, dtype = reader(file)
    except BadImageError:
        raise
    except Exception as error:  # numpy raises many kinds over a damaged header
        raise BadImageError(f"unreadable: its header, {one_line(error)}") from None
    return shape, fortran, dtype, file.tell()


class NpyHeader:
    """The header of a .npy file.

    Raises BadImageError if it is damaged, or says that the file holds something else than a picture.
    """

    def __init__(self, data: Readable) -> None:
        self.shape, self.fortran, self.dtype, self.start = _parsed(bytes(data[: _header_bytes(data)]))
        if self.dtype.hasobject or self.dtype.names is not None:
            raise BadImageError("unsupported format: .npy of Python objects or of records")
        if len(self.shape) not in (2, 3) or not all(type(side) is int and side > 0 for side in self.shape):
            raise BadImageError(
                f"unsupported format: .npy of shape {_shown(self.shape)}; save [H, W], or [H, W, C] of C channels"
            )
        missing = self.start + self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64)) - len(data)
        if missing > 0:
            raise BadImageError(f"truncated: it ends {missing:,} bytes before its array does")

    @property
    def is_plain(self) -> bool:
        """Whether windows are read from the bytes as they are."""
        return not self.fortran and self.dtype.newbyteorder("=") == self.dtype and self.start % 8 == 0


def facts(data: bytes, channels: int | None = None) -> ArrayFacts:
    """Return the facts about a .npy file; `channels` is how many there should be, where the order of axes tells.

    An array [C, H, W] counts as such only if its first axis, and not its last, has that many. Raises BadImageError.
    """
    header = NpyHeader(data)
    leading = is_channels_first(header.shape, channels)
    shape = header.shape if len(header.shape) == 3 else (*header.shape, 1)
    height, width, count = (shape[1], shape[2], shape[0]) if leading else shape
    why = ""
    if leading:
        why = ".npy of shape [C, H, W]"
    elif not header.is_plain:
        why = ".npy in Fortran order" if header.fortran else ".npy of another byte order or alignment"
    name = header.dtype.newbyteorder("=").name
    return ArrayFacts(width, height, count, name, "npy", kept=not why, why=why)


def is_channels_first(shape: tuple[int, ...], channels: int | None) -> bool:
    """Whether an array is [C, H, W]: its first axis has the length `channels`, and its last another.

    Raises BadImageError if both have it, except for a single value, which is the same either way.
    """
    if channels is None or len(shape) != 3 or shape[0] != channels or max(shape) == 1:
        return False
    if shape[2] == channels:
        raise BadImageError(
            f"ambiguous: .npy of shape {_shown(shape)} may be [C, H, W] or [H, W, C]; save it with the channels last "
            "and other sides"
        )
    return True


def read(data: bytes, channels: int | None = None) -> Pixels:
    """Read the whole array [H, W, C], in its own order or from [C, H, W]. Raises BadImageError."""
    header = NpyHeader(data)
    array = _array(data, header)
    if is_channels_first(header.shape, channels):
        array = np.moveaxis(array, 0, 2)
    array = array if array.ndim == 3 else array[..., None]
    return np.ascontiguousarray(array, header.dtype.newbyteorder("="))


def read_window(data: bytes, window: Window) -> Pixels:
    """Return a window [h, w, C] of an array [H, W] or [H, W, C], a view of the bytes. Raises BadImageError."""
    header = NpyHeader(data)
    array = _array(data, header)
    array = array[window.top : window.bottom, window.left : window.right]
    return (array if array.ndim == 3 else array[..., None]).astype(header.dtype.newbyteorder("="), copy=False)


def _array(data: bytes, header: NpyHeader) -> Pixels:
    count = int(np.prod(header.shape, dtype=np.int64))
    values = np.frombuffer(data, header.dtype, count, header.start)
    return values.reshape(header.shape, order="F" if header.fortran else "C")


def encode(array: Pixels) -> bytes:
    """Return an array [H, W, C] as a .npy file from which windows are read, the same bytes for the same values."""
    contiguous = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    header = io.BytesIO()
    about: dict[str, Any] = {"descr": contiguous.dtype.str, "fortran_order": False, "shape": contiguous.shape}
    np.lib.format.write_array_header_1_0(header, about)
    return b"".join([header.getvalue(), contiguous.data])


def _shown(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
