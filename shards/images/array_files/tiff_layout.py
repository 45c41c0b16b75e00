"""Layout of the pixels in a TIFF: blocks (strips or tiles), their places, and how values are packed in them.

Legend: H, W sides in pixels, C channels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from coma.shards.images import tiff
from coma.shards.images.array_files.facts import ArrayFacts
from coma.shards.images.array_files.inflate import COMPRESSIONS
from coma.shards.images.formats import BadImageError
from coma.shards.images.readable import Readable

_KINDS = {1: "u", 2: "i", 3: "f"}
_NAMES = {"u": "uint", "i": "int", "f": "float"}  # dtype.name takes 5 us
_NATIVE = {"u": (8, 16, 32, 64), "i": (8, 16, 32, 64), "f": (16, 32, 64)}
YCBCR = 6
"""Photometric of JPEGs."""
JPEG = 7
"""Compression of JPEGs."""
_PREDICTORS = (1, 2, 3)
_MOST_BLOCK_BYTES = 2**30
_MOST_SIDE = 2**31


@dataclass(frozen=True, eq=False)
class TiffLayout:
    """Where the pixels of a TIFF's first picture are."""

    width: int
    height: int
    channels: int
    dtype: np.dtype[Any]
    """In the file's byte order."""
    planar: bool
    """Whether each channel has blocks of its own."""
    compression: int
    predictor: int
    block_width: int
    block_height: int
    tiled: bool
    offsets: npt.NDArray[np.integer[Any]]
    sizes: npt.NDArray[np.integer[Any]]
    """Bytes of each block, plane after plane, row after row."""
    orientation: int
    """1 to 8; 1 is upright."""
    photometric: int = 1
    jpeg_tables: bytes = b""
    """What the JPEGs of its blocks share."""

    @property
    def across(self) -> int:
        """Blocks beside each other."""
        return -(-self.width // self.block_width)

    @property
    def down(self) -> int:
        """Blocks below each other."""
        return -(-self.height // self.block_height)

    @property
    def block_channels(self) -> int:
        """Channels in one block."""
        return 1 if self.planar else self.channels

    def rows_of(self, row: int) -> int:
        """Rows of the blocks in a row of blocks: the last strip may be shorter, a tile is always whole."""
        if self.tiled:
            return self.block_height
        return min(self.block_height, self.height - row * self.block_height)


def layout(data: Readable, jpeg: bool = False) -> TiffLayout:
    """Read the layout of a TIFF's first picture; with `jpeg` its blocks may be JPEGs of 8 bits.

    Raises BadImageError if it is damaged, or no picture of values.
    """
    return _layout(data, tiff.first_directory(data), jpeg)


def layouts(data: Readable, channels: int) -> list[TiffLayout]:
    """Read the layouts of a TIFF's pictures if they are a picture for each of the channels, else that of the first.

    Raises:
        BadImageError: one is damaged, or there are several that are not the channels.
    """
    pictures = [_layout(data, directory) for directory in tiff.pictures(data, channels + 1) or [{}]]
    kinds = {(each.width, each.height, each.channels, each.dtype, each.orientation) for each in pictures}
    if len(pictures) > 1 and (len(pictures) != channels or len(kinds) > 1 or pictures[0].channels > 1):
        raise BadImageError(
            "animated: a TIFF of several pictures, which are not one for each channel; save one picture a file"
        )
    return pictures


def _layout(data: Readable, directory: tiff.Directory, jpeg: bool = False) -> TiffLayout:
    def value(tag: int, default: int) -> int:
        return tiff.first_value(directory, tag, default)

    width, height, channels = value(tiff.WIDTH, 0), value(tiff.HEIGHT, 0), value(tiff.CHANNELS, 1)
    if not (0 < width < _MOST_SIDE and 0 < height < _MOST_SIDE and channels):
        raise BadImageError("truncated: the header is cut")
    if tiff.DNG_VERSION in directory or value(tiff.SUBFILE, 0) & 1:
        raise BadImageError("unsupported format: a camera's raw file, or another TIFF that begins with a preview")
    if (depth := value(tiff.IMAGE_DEPTH, 1)) > 1:
        raise BadImageError(f"animated: a TIFF of a volume of {depth} pictures; save one picture a file")
    tiled = tiff.TILES[0] in directory
    tags = tiff.TILES if tiled else tiff.STRIPS
    if not {*tags} <= directory.keys():
        raise BadImageError("truncated: the header does not say where its pixels are")
    compression, predictor = value(tiff.COMPRESSION, 1), value(tiff.PREDICTOR, 1)
    is_jpeg = jpeg and compression == JPEG
    if compression not in COMPRESSIONS and not is_jpeg:
        name = tiff.COMPRESSIONS.get(compression)
        raise BadImageError(
            f"unsupported format: TIFF with compression {compression}{f' ({name})' if name else ''}; write it with "
            "deflate, zstd or none"
        )
    if predictor not in _PREDICTORS or (predictor == 3 and value(tiff.SAMPLE_FORMAT, 1) != 3):
        raise BadImageError(f"unsupported format: TIFF with predictor {predictor}")
    if value(tiff.FILL_ORDER, 1) != 1:
        raise BadImageError("unsupported format: TIFF whose bits are in reversed order")
    photometric, planar = value(tiff.PHOTOMETRIC, 1), value(tiff.PLANES, 1) == 2 and channels > 1
    if photometric not in tiff.PLAIN and not (is_jpeg and photometric == YCBCR and not planar):
        name = tiff.PHOTOMETRICS.get(photometric) or f"photometric {photometric}"
        raise BadImageError(f"unsupported format: TIFF whose values are not plain ones ({name})")
    whole = TiffLayout(
        width=width,
        height=height,
        channels=channels,
        dtype=_dtype(data, directory),
        planar=planar,
        compression=compression,
        predictor=predictor,
        block_width=value(tiff.TILE_WIDTH, 0) if tiled else width,
        block_height=value(tiff.TILE_HEIGHT, 0) if tiled else min(value(tiff.ROWS_PER_STRIP, height), height),
        tiled=tiled,
        offsets=directory[tags[0]],
        sizes=directory[tags[1]],
        orientation=value(tiff.ORIENTATION, 1),
        photometric=photometric,
        jpeg_tables=directory[tiff.JPEG_TABLES].tobytes() if tiff.JPEG_TABLES in directory else b"",
    )
    _check_blocks(whole, len(data))
    return whole


def _dtype(data: Readable, directory: tiff.Directory) -> np.dtype[Any]:
    """Return the type of the values, which all channels share."""
    bits, kinds = directory.get(tiff.BITS), directory.get(tiff.SAMPLE_FORMAT)
    bit, kind = tiff.first_value(directory, tiff.BITS, 1), tiff.first_value(directory, tiff.SAMPLE_FORMAT, 1)
    if any(values is not None and len(set(values.tolist())) > 1 for values in (bits, kinds)):
        raise BadImageError("unsupported format: TIFF whose channels have different types")
    letter = _KINDS.get(kind, "")
    if bit not in _NATIVE.get(letter, ()):
        raise BadImageError(f"unsupported format: TIFF of {bit} bits" + ("" if letter else f", sample format {kind}"))
    return np.dtype(f"{'<' if data.startswith(b'II') else '>'}{letter}{bit // 8}")


def _check_blocks(of: TiffLayout, file_bytes: int) -> None:
    if not (of.block_width and of.block_height):
        raise BadImageError("unreadable: its tiles have no size")
    block_bytes = of.block_width * of.block_height * of.block_channels * of.dtype.itemsize
    if block_bytes > _MOST_BLOCK_BYTES:
        what = "tile" if of.tiled else "strip"
        raise BadImageError(f"bomb: a {what} of {block_bytes:,} bytes, the limit is {_MOST_BLOCK_BYTES:,}")
    blocks = of.across * of.down * (of.channels if of.planar else 1)
    if len(of.offsets) < blocks or len(of.sizes) < blocks:
        raise BadImageError(f"unreadable: it needs {blocks:,} strips or tiles, and lists {len(of.offsets):,}")
    ends = of.offsets[:blocks].astype(np.float64) + of.sizes[:blocks]
    if ends.max() > file_bytes:
        raise BadImageError("truncated: it ends before its pixels")
    if not of.sizes[:blocks].all():
        raise BadImageError("unsupported format: TIFF with tiles left out, whose value is not agreed on; write them")


def facts(data: Readable, channels: int | None = None) -> ArrayFacts:
    """Return the facts about a TIFF's first picture.

    With `channels`, which is given for a file of a source, its pictures may be the channels; other pictures than
    reduced copies are refused.

    Raises:
        BadImageError: it is damaged, or not of plain values.
    """
    pictures = [layout(data)] if channels is None else layouts(data, channels)
    of = pictures[0]
    turned = of.orientation in range(5, 9)
    why = "orientation" if of.orientation in range(2, 9) else ""
    if len(pictures) > 1:
        why = "TIFF of a picture for each channel"
    width, height = (of.height, of.width) if turned else (of.width, of.height)
    name = f"{_NAMES[of.dtype.kind]}{8 * of.dtype.itemsize}"
    count = of.channels * len(pictures)
    return ArrayFacts(width, height, count, name, "tiff", kept=not why, why=why, turned=turned)
