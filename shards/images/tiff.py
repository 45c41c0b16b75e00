"""TIFF: what a file holds, told from its tags, and why one that is sound is not shown.

PIL opens some kinds of TIFF and says of the others only that it cannot; it also opens a few that it shows wrong.
"""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import TiffTags
from PIL.TiffImagePlugin import COMPRESSION_INFO

from coma.errors import shell_command
from coma.shards.images.options import MOST_CHANNELS
from coma.shards.images.readable import Readable

SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
FILL_ORDER, ORIENTATION, ROWS_PER_STRIP, PREDICTOR = 266, 274, 278, 317
CHANNELS, PLANES, TILE_WIDTH, TILE_HEIGHT = 277, 284, 322, 323
EXTRA_SAMPLES, SAMPLE_FORMAT, DNG_VERSION = 338, 339, 50706
JPEG_TABLES, IMAGE_DEPTH = 347, 32997
_OLD_SUBFILE = 255
STRIPS, TILES = (273, 279), (324, 325)  # offsets, byte counts
_TAGS = frozenset(
    (
        *(SUBFILE, _OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, CHANNELS, PLANES, *STRIPS, *TILES),
        *(TILE_WIDTH, TILE_HEIGHT, EXTRA_SAMPLES, SAMPLE_FORMAT, DNG_VERSION),
        *(FILL_ORDER, ORIENTATION, ROWS_PER_STRIP, PREDICTOR, JPEG_TABLES, IMAGE_DEPTH),
    )
)
_REDUCED, _MASK = 1, 4  # bits of SUBFILE
_OLD_REDUCED = 2  # value of _OLD_SUBFILE
_TYPES = {1: "u1", 7: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_DTYPES = {(order, kind): np.dtype(order + code) for order in "<>" for kind, code in _TYPES.items()}
_MOST_ENTRIES = 2**16
MOST_DIRECTORIES = 64  # an image of 2^26 pixels has at most 26 reduced copies, each with a mask
_PIL_CHANNELS = 6
_RGB = 2
_GREYS = (0, 1)
_WHITE_IS_ZERO = 0
_UNSIGNED = 1
PLAIN = (0, 1, 2, 5)
"""Photometric interpretations of plain values: white is zero, black is zero, RGB, CMYK."""
_TAKEN = ((1, 8), (1, 16), (2, 16), (3, 32))  # sample formats and bits of the types that samples may have
FORMATS = {2: "signed", 3: "floating point", 5: "complex", 6: "complex"}
PHOTOMETRICS = {code: name for name, code in TiffTags.lookup(PHOTOMETRIC).enum.items() if code not in _GREYS} | {
    32844: "LogL",
    32845: "LogLuv",
}
_WEBP = 50001
COMPRESSIONS = {
    **dict.fromkeys((33003, 33005, 34712), "JPEG 2000"),
    **dict.fromkeys((50002, 52546), "JPEG XL"),
    32909: "PixarLog",
    34661: "JBIG",
    34887: "LERC",
    34892: "lossy JPEG of DNG",
    _WEBP: "WebP",
}

Directory = dict[int, npt.NDArray[np.unsignedinteger[Any]]]
"""The tags of one picture, those that are integers and needed here: tag → values."""


def has_separate_planes(data: Readable) -> bool:
    """Whether the first picture keeps its channels one after the other."""
    directory = first_directory(data)
    return first_value(directory, PLANES, 1) == 2 and first_value(directory, CHANNELS, 1) > 1


def has_several_pictures(data: Readable) -> bool:
    """Whether there are pictures other than the first one, its reduced copies and its masks."""
    return len(pictures(data, 2)) > 1


def pictures(data: Readable, most: int) -> list[Directory]:
    """Return the first picture and all others but reduced copies and masks, no more than `most`."""
    whole: list[Directory] = []
    for number, directory in enumerate(directories(data)):
        if number in (0, MOST_DIRECTORIES) or not belongs(directory):
            whole.append(directory)
        if number == MOST_DIRECTORIES or len(whole) == most:
            break
    return whole


def belongs(directory: "Directory") -> bool:
    """Whether a picture is marked as a reduced copy or a mask of another one."""
    marked = first_value(directory, SUBFILE, 0) & (_REDUCED | _MASK)
    return bool(marked) or first_value(directory, _OLD_SUBFILE, 0) == _OLD_REDUCED


def unsupported(data: Readable) -> str | None:
    """Say what a TIFF is that has no one agreed look or that PIL shows wrong; None for others, damaged ones too."""
    if data.startswith(b"MM\0+"):
        return f"BigTIFF in big-endian order{way_out(first_directory(data))}"
    directory = first_directory(data)
    if DNG_VERSION in directory or first_value(directory, SUBFILE, 0) & _REDUCED:
        return "a camera's raw file, or another TIFF that begins with a preview"
    compression = first_value(directory, COMPRESSION, 1)
    if compression not in COMPRESSION_INFO or compression == _WEBP:  # PIL's own libtiff comes without it
        name = COMPRESSIONS.get(compression)
        return f"TIFF with compression {compression}{f' ({name})' if name else ''}"
    bits, photometric = first_value(directory, BITS, 1), first_value(directory, PHOTOMETRIC, 0)
    channels = first_value(directory, CHANNELS, 1)
    if first_value(directory, SAMPLE_FORMAT, _UNSIGNED) != _UNSIGNED or bits not in (1, 2, 4, 8, 16):
        return f"{_description(directory)}, which has no agreed brightness{way_out(directory)}"
    is_dark_negative = photometric == _WHITE_IS_ZERO and bits == 16  # PIL shows the negative
    if is_dark_negative and channels == 1:
        return f"{_description(directory)}, in which zero is white{way_out(directory)}"
    too_many = first_value(directory, PLANES, 1) == 1 and channels > _PIL_CHANNELS
    # Libtiff takes a nameless fourth plane for alpha that the colours were multiplied with.
    nameless_plane = (
        photometric == _RGB and has_separate_planes(data) and channels > 3 and EXTRA_SAMPLES not in directory
    )
    if too_many or nameless_plane or (photometric in _GREYS and channels > 2):
        return _description(directory) + way_out(directory)
    return None


def unopened(data: Readable) -> str | None:
    """Say what a TIFF is that PIL does not open; None if its first directory is damaged."""
    directory = first_directory(data)
    return _description(directory) + way_out(directory) if {WIDTH, HEIGHT} <= directory.keys() else None


def is_cut(data: Readable) -> bool:
    """Whether strips or tiles of the first picture lie beyond the end of the file."""
    directory = first_directory(data)
    for offsets, counts in (STRIPS, TILES):
        if offsets in directory and counts in directory and len(directory[offsets]) == len(directory[counts]):
            ends = directory[offsets].astype(np.float64) + directory[counts]
            return bool(len(ends) and ends.max() > len(data))
    return False


def _description(directory: Directory) -> str:
    channels, photometric = first_value(directory, CHANNELS, 1), first_value(directory, PHOTOMETRIC, 0)
    kinds = [PHOTOMETRICS.get(photometric), FORMATS.get(first_value(directory, SAMPLE_FORMAT, _UNSIGNED))]
    if photometric == _RGB and channels > 3 and EXTRA_SAMPLES not in directory:
        kinds.append("without ExtraSamples")
    if photometric in _GREYS and channels in (3, 4):
        kinds.append("not marked as RGB")
    what = f"TIFF of {channels} channel{'s' * (channels != 1)} of {first_value(directory, BITS, 1)} bits"
    return ", ".join([what, *filter(None, kinds)])


def way_out(directory: Directory) -> str:
    """Return how a TIFF of values that are not 8-bit RGB is taken, nothing for types that are not."""
    channels = first_value(directory, CHANNELS, 1)
    kind = (first_value(directory, SAMPLE_FORMAT, _UNSIGNED), first_value(directory, BITS, 1))
    is_plain = first_value(directory, PHOTOMETRIC, 1) in PLAIN and kind in _TAKEN
    command = shell_command("coma", "shard", "--channels", channels)
    return f" ({command} takes it as it is)" if is_plain and channels <= MOST_CHANNELS else ""


def first_value(directory: Directory, tag: int, default: int) -> int:
    """Return the first value of a tag."""
    values = directory.get(tag)
    return default if values is None or not len(values) else int(values[0])


def first_directory(data: Readable) -> Directory:
    """Return the tags of the first picture, none if they cannot be read."""
    return next(directories(data), {})


def directories(data: Readable) -> Iterator[Directory]:
    """Yield the pictures' tags as long as they can be read, each directory once."""
    order = "<" if data.startswith(b"II") else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    wide, count_code, entry_bytes = ("Q", "Q", 20) if big else ("I", "H", 12)
    try:
        at = _number(data, 8 if big else 4, order + wide)
        seen: set[int] = set()
        while at and at not in seen:
            seen.add(at)
            entries = _number(data, at, order + count_code)
            if entries > _MOST_ENTRIES:
                return
            first = at + struct.calcsize("=" + count_code)
            stop = first + entries * entry_bytes
            if stop > len(data):
                return
            yield dict(_tags(data, first, stop, order, wide))
            at = _number(data, stop, order + wide)
    except struct.error:
        return


def _tags(data: Readable, first: int, stop: int, order: str, wide: str) -> Iterator[tuple[int, Any]]:
    """Yield those of _TAGS among the entries of a directory whose values are there, with their values."""
    inline_bytes = struct.calcsize("=" + wide)
    entries = struct.iter_unpack(f"{order}HH{wide}{wide}", data[first:stop])
    for number, (tag, kind, count, place) in enumerate(entries):
        if tag not in _TAGS or kind not in _TYPES:
            continue
        dtype = _DTYPES[order, kind]
        size = count * dtype.itemsize
        if size <= inline_bytes:
            place = first + (number + 1) * (4 + 2 * inline_bytes) - inline_bytes
        if place + size <= len(data):
            yield tag, np.frombuffer(data[place : place + size], dtype)


def _number(data: Readable, at: int, form: str) -> int:
    """Return the integer at a place. Raises struct.error if it is not there."""
    number: int = struct.unpack(form, data[at : at + struct.calcsize(form)])[0]
    return number
