"""PNG chunks: facts about them, and texts that are longer than PIL takes."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from PIL.PngImagePlugin import MAX_TEXT_CHUNK, MAX_TEXT_MEMORY

from coma.shards.images.formats import BadImageError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_TURNING_TEXTS = (b"Raw profile type", b"XML:com.adobe.xmp")  # where PIL looks for an orientation, too
_MOST_CHUNK_BYTES = 8_000_000  # with its name, length and checksum: libpng's limit, which OpenCV compiles in


@dataclass(frozen=True)
class PngChunks:
    """Facts from a walk over the chunks of a PNG."""

    may_turn: bool
    """A chunk may hold an orientation."""
    late_metadata: bool
    """Such a chunk stands after the pixels."""
    animated: bool
    """It says that it has several pictures."""
    exif_chunks: int
    palette: bool
    unknown_critical: str | None
    """A chunk that is marked as critical, and that libpng does not know."""
    too_long: str | None
    """A chunk that is longer than the stream's decoder takes; pixels and plain texts may have any length."""


def png_chunks(data: bytes, checksums: bool) -> PngChunks:
    """Walk a PNG from its signature to IEND, verifying its checksums if asked to. Raises BadImageError."""
    view = memoryview(data)
    exif_chunks = 0
    may_turn = late_metadata = animated = palette = pixels = False
    unknown = too_long = None
    name = b""
    for name, at, end in chunks(data):
        if checksums and zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise BadImageError(f"unreadable: the checksum of its {name.decode()} chunk is wrong")
        if name == b"IDAT":
            pixels = True
        elif name == b"eXIf":
            exif_chunks += 1
            may_turn, late_metadata = True, late_metadata or pixels
        elif name in _TEXTS and data.startswith(_TURNING_TEXTS, at + 8):
            may_turn, late_metadata = True, late_metadata or pixels
        elif name == b"acTL":
            animated = int.from_bytes(data[at + 8 : at + 12]) > 1
        elif name == b"PLTE":
            palette = True
        elif name[0] < ord("a") and name not in _CRITICAL:
            unknown = unknown or name.decode()
        if name not in (b"IDAT", b"tEXt") and end - at > _MOST_CHUNK_BYTES:
            too_long = too_long or name.decode()
    if name != b"IEND":
        raise BadImageError("truncated: it ends before its IEND chunk")
    return PngChunks(may_turn, late_metadata, animated, exif_chunks, palette, unknown, too_long)


def without_long_texts(data: bytes) -> bytes:
    """Return a PNG without the texts and the colour profile for whose length PIL refuses it, and the rest as it is.

    The lengths are found by inflating no more than PIL's limit, so that a bomb in a text does no harm.
    """
    kept: list[bytes] = []
    start = text_bytes = 0
    for name, at, end in chunks(data):
        if name not in _TEXTS and name != b"iCCP":
            continue
        length = _text_bytes(name, data[at + 8 : end - 4])
        if length is not None and (name == b"iCCP" or text_bytes + length <= MAX_TEXT_MEMORY):
            text_bytes += length if name in _TEXTS else 0
            continue
        kept.append(data[start:at])
        start = end
    return b"".join([*kept, data[start:]]) if kept else data


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield each chunk's name, first byte and end, up to IEND or as far as there are whole ones."""
    at, name = 8, b""
    while name != b"IEND":
        name = data[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if end > len(data) or not name.isalpha():
            return
        yield name, at, end
        at = end


def _text_bytes(name: bytes, body: bytes) -> int | None:
    """Return the length of a text or profile without its compression; None if it is longer than PIL takes."""
    _, _, rest = body.partition(b"\0")
    compressed = True
    if name == b"iTXt":
        compressed = rest[:1] != b"\0"
        rest = b"".join(rest[2:].split(b"\0", 2)[2:])  # after the language and the translated keyword
    elif name != b"tEXt":
        rest = rest[1:]  # the method
    if name == b"tEXt" or not compressed:
        return len(rest)
    inflater = zlib.decompressobj()
    try:
        length = len(inflater.decompress(rest, MAX_TEXT_CHUNK))
    except zlib.error:  # PIL passes over it
        return 0
    return None if inflater.unconsumed_tail else length
