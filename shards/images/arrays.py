"""Samples of any number of channels and of 8, 16 or 32 bits: facts of their files, and windows of their pixels.

Legend: H, W sides of a picture, h, w of a window in pixels, C channels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from coma.errors import ComaError
from coma.shards.images.array_files import dicom, npy, png, tiff_layout, tiff_pixels
from coma.shards.images.array_files.facts import ArrayFacts as ArrayFacts
from coma.shards.images.array_files.facts import Pixels as Pixels
from coma.shards.images.array_files.facts import Window
from coma.shards.images.formats import MAGIC, BadImageError, name_of, one_line, refusal
from coma.shards.images.png import PNG_SIGNATURE

_WINDOWS: dict[str, Callable[[bytes, Window], Pixels]] = {
    "npy": npy.read_window,
    "png": png.read_window,
    "tiff": tiff_pixels.read_window,
}


def array_facts(data: bytes, channels: int | None = None) -> ArrayFacts:
    """Return what the header of a file says of its array: sides, channels, type and format.

    Args:
        data: the file's bytes.
        channels: for a file that is no sample of a shard yet, how many channels there should be: it decides between
            [H, W, C] and [C, H, W] of a .npy, and more of the file is checked.

    Raises:
        BadImageError: it is none of the formats that are read, or damaged.
    """
    with _damage_as_bad_image():
        if dicom.is_dicom(data) and channels is not None:
            return dicom.facts(data)
        if data.startswith(npy.MAGIC):
            return npy.facts(data, channels)
        if MAGIC["TIFF"].match(data):
            return tiff_layout.facts(data, channels)
        if data.startswith(PNG_SIGNATURE):
            return png.facts(data, channels)
    raise BadImageError(_refusal(data))


def read_window(data: bytes, format: str, top: int, left: int, height: int, width: int) -> Pixels:
    """Read a window [h, w, C] of a sample, in its own type, decoding no more than the window needs.

    Args:
        data: bytes of the sample in its shard.
        format: that of the manifest.
        top: first row.
        left: first column.
        height: number of rows.
        width: number of columns.

    Raises:
        BadImageError: the bytes are damaged or of another format, or the window is not inside the picture.
    """
    window = Window(top, left, height, width)
    if format not in _WINDOWS:
        raise BadImageError(f"unsupported format: {format}")
    if min(top, left) < 0 or min(height, width) < 1:
        raise _no_window(window)
    with _damage_as_bad_image():
        pixels = _WINDOWS[format](data, window)
    if pixels.shape[:2] != (height, width):
        raise _no_window(window)
    return pixels


def read_array(data: bytes, facts: ArrayFacts) -> Pixels:
    """Read a whole file [H, W, C], upright, also one whose bytes are not kept. Raises BadImageError."""
    with _damage_as_bad_image():
        if facts.format == "npy":
            return npy.read(data, facts.channels)
        if facts.format == "dicom":
            return dicom.read(data)
        return tiff_pixels.read(data, facts.channels) if facts.format == "tiff" else png.read(data)


@contextmanager
def _damage_as_bad_image() -> Iterator[None]:
    """Raise whatever damaged bytes lead to as a BadImageError."""
    try:
        yield
    except (BadImageError, ComaError):
        raise
    except Exception as error:  # pydicom and PIL raise many kinds, also when a value is only asked for
        raise BadImageError(f"unreadable: {one_line(error)}") from None


def _no_window(window: Window) -> BadImageError:
    at = f"{window.width}x{window.height} pixels from {window.left}, {window.top} on"
    return BadImageError(f"unreadable: it has no {at}")


def _refusal(data: bytes) -> str:
    """Say why bytes of no format that is read here are refused."""
    name = name_of(data)
    return refusal(data) if name is None else f"unsupported format: {name}, where --channels reads TIFF, PNG and .npy"
