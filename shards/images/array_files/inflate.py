"""Decompression of the blocks of a TIFF: at least the bytes that are wanted, and never more than a block should hold.

Deflate is read by libdeflate, which takes 40% of zlib's time but reads a block whole; zstd by pyarrow; LZW and PackBits
by Pillow's libtiff, to which a block is handed as a picture of bytes.
"""

import io
import lzma
import struct
import zlib
from collections.abc import Callable

import deflate as libdeflate
import pyarrow as pa
from PIL import Image

from coma.shards.images.formats import BadImageError, one_line

Inflate = Callable[[memoryview, int, int], bytes | bytearray | memoryview]
"""Takes a block's bytes, how many it holds when inflated and how many of them are wanted; returns at least those."""

_WORTH_A_PART = 0.4  # of a block: below this, zlib that stops is faster than libdeflate
_LIBTIFF_TAGS = 9


def _stored(block: memoryview, whole: int, wanted: int) -> memoryview:
    return block


def _deflate(block: memoryview, whole: int, wanted: int) -> bytes | bytearray:
    if wanted > _WORTH_A_PART * whole:
        try:
            return libdeflate.zlib_decompress(block, whole)
        except libdeflate.DeflateError:
            pass  # more in it than there should be, as some programs write; or damage, which zlib names
    return zlib.decompressobj().decompress(block, wanted)


def _zstandard(block: memoryview, whole: int, wanted: int) -> bytes:
    inflated: bytes = pa.decompress(block, decompressed_size=whole, codec="zstd", asbytes=True)
    return inflated


def _lzma(block: memoryview, whole: int, wanted: int) -> bytes:
    return lzma.LZMADecompressor().decompress(bytes(block), wanted)


def _lzw(block: memoryview, whole: int, wanted: int) -> bytes:
    return _by_libtiff(5, block, whole)


def _packbits(block: memoryview, whole: int, wanted: int) -> bytes:
    return _by_libtiff(32773, block, whole)


def _by_libtiff(compression: int, block: memoryview, whole: int) -> bytes:
    """Have libtiff read a block as a TIFF of one grey strip: neither method knows of rows or of types."""
    width = next(side for side in range(min(whole, 1 << 16), 0, -1) if whole % side == 0)
    height, start = whole // width, 8 + 2 + 12 * _LIBTIFF_TAGS + 4
    longs = {256: width, 257: height, 273: start, 278: height, 279: len(block)}
    tags = longs | {258: 8, 259: compression, 262: 1, 277: 1}
    entries = [struct.pack("<HHII", tag, 4 if tag in longs else 3, 1, tags[tag]) for tag in sorted(tags)]
    file = b"".join([b"II*\0", struct.pack("<IH", 8, len(entries)), *entries, bytes(4), block])
    with Image.open(io.BytesIO(file), formats=("TIFF",)) as image:
        return image.tobytes()


COMPRESSIONS: dict[int, Inflate] = {
    1: _stored,
    5: _lzw,
    8: _deflate,
    32773: _packbits,
    32946: _deflate,  # its old number
    34925: _lzma,
    50000: _zstandard,
}
"""Compression of a TIFF → what undoes it."""


def inflate(compression: int, block: memoryview, whole: int, wanted: int) -> memoryview:
    """Return the first `wanted` bytes of a block that holds `whole`. Raises BadImageError if it holds fewer."""
    try:
        inflated = COMPRESSIONS[compression](block, whole, wanted)
    except Image.DecompressionBombError:
        raise BadImageError(f"bomb: a strip or tile of {whole:,} bytes") from None
    except (zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, pa.ArrowException) as error:
        raise BadImageError(f"unreadable: {one_line(error)}") from None
    if len(inflated) < wanted:
        raise BadImageError(f"truncated: a strip or tile holds {len(inflated):,} bytes, not {wanted:,}")
    return memoryview(inflated)[:wanted]
