"""Image headers: signs that the stream's decoder (DALI 2.4, nvImageCodec 0.9) shows an image otherwise than PIL.

Each rule stands for a difference that was measured; docs/experiments.md lists them all.
"""

import re
from typing import Literal

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from coma.shards.images import tiff
from coma.shards.images.formats import BadImageError
from coma.shards.images.png import PngChunks

_ORIENTATION = 0x0112  # EXIF and TIFF tag
_EXIF_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_TIFF_MODES = frozenset({"L", "P", "RGB", "RGBA", "CMYK", "I;16", "I;16B"})
_TIFF_COMPRESSIONS = frozenset({"raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "jpeg", "zstd"})
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # in entropy-coded bytes 00 and restarts are no markers


def _has_contiguous_segments(data: bytes) -> bool:
    """Whether no stray bytes lie between the segments of a JPEG's header: libjpeg skips them, nvImageCodec fails."""
    at = 2
    while data[at : at + 1] == b"\xff":
        marker = data[at + 1]
        if marker == 0xDA:  # start of scan
            return True
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])
    return False


def has_end_marker(data: bytes) -> bool:
    """Whether the first picture of a JPEG has its end-of-image marker; libjpeg fills in a lost tail silently."""
    if data.endswith(b"\xff\xd9"):
        return True
    at = 2
    while (match := _JPEG_MARKER.search(data, at)) is not None:
        at = match.end()
        marker = data[at - 1]
        if marker == 0xD9:
            return True
        if marker not in (0x01, 0xD8):
            at += int.from_bytes(data[at : at + 2])
    return False


def decoder_orientation(image: Image.Image, chunks: PngChunks | None) -> int | None:
    """Return the orientation that the stream's decoder applies, 1 to 8; None if its parts may disagree.

    They disagree if there are two EXIF blocks: one half of nvImageCodec takes the first, the other the last, and
    a quarter turn between them makes it write outside its memory.
    """
    if isinstance(image, TiffImageFile):
        orientation = image.tag_v2.get(_ORIENTATION, 1)
        return orientation if orientation in range(1, 9) else 1
    if chunks is not None and chunks.exif_chunks > 1:
        return None
    exif = image.info.get("exif")
    if exif is None:
        return 1
    applist = getattr(image, "applist", ())
    blocks = [body for name, body in applist if name == "APP1" and body[:5] == b"Exif\0"]
    seen = {_exif_orientation(block.removeprefix(b"Exif\0\0")) for block in blocks or [exif]}
    return seen.pop() if len(seen) == 1 else None


def _exif_orientation(exif: bytes) -> int | None:
    """Return the orientation in the first directory of an EXIF block as OpenCV's parser, which DALI uses, reads it.

    The parser takes two bytes of the first entry with that tag, whatever their type. It drops the block if some
    entries point outside of it: None is returned if the orientation is not 1 and any entry does.
    """
    if exif[:4] not in (b"II*\0", b"MM\0*"):
        return 1
    order: Literal["little", "big"] = "little" if exif.startswith(b"II") else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], order)

    directory = number(4, 4)
    orientation = 0
    whole = True
    for at in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if not orientation and number(at, 2) == _ORIENTATION and at + 10 <= len(exif):
            orientation = number(at + 8, 2)
        size = _EXIF_TYPE_BYTES.get(number(at + 2, 2), 1) * number(at + 4, 4)
        whole &= at + 12 <= len(exif) and (size <= 4 or number(at + 8, 4) + size <= len(exif))
        if at > len(exif):
            break
    if not 2 <= orientation <= 8:
        return 1
    return orientation if whole else None


def conversion_reason(image: Image.Image, data: bytes, chunks: PngChunks | None) -> str | None:
    """Say why the stream's decoder shows an image otherwise than PIL or not at all; None if both show the same.

    Orientation is not considered. Raises BadImageError for images without one agreed look.
    """
    name = str(image.format)
    if name in ("GIF", "AVIF"):
        return name
    if name == "JPEG2000":
        return "JPEG 2000"
    if name in ("JPEG", "MPO"):
        # PIL and the browsers take CMYK for inverted, as Adobe writes it; libjpeg asks for Adobe's marker.
        if image.mode == "CMYK" and "adobe_transform" not in image.info:
            return "CMYK without Adobe's marker"
        return None if _has_contiguous_segments(data) else "JPEG with stray bytes in its header"
    if isinstance(image, TiffImageFile):
        return _tiff_conversion_reason(image)
    if chunks is not None:
        if chunks.unknown_critical == "CgBI":
            raise BadImageError("unsupported format: a PNG that Apple's tools made for iOS (CgBI)")
        if image.mode in ("P", "PA") and not chunks.palette:
            raise BadImageError("unreadable: a PNG with a palette, which is not there")
        if chunks.unknown_critical is not None:
            return f"PNG with an unknown {chunks.unknown_critical} chunk"
        return None if chunks.too_long is None else f"PNG whose {chunks.too_long} chunk has more than 8 MB"
    if name == "BMP":
        codec, raw_mode = _codec(image)
        plain = codec == "raw" and raw_mode not in ("BGR;15", "BGR;16")
        return None if plain else "BMP with compression or 16 bits"
    if name == "PPM":
        if image.mode == "F":
            raise BadImageError("unsupported format: PFM, which has no agreed brightness")
        # Other codecs are for text, or for a maximum other than 255 and 65535, which the decoder ignores.
        return None if _codec(image)[0] == "raw" else "PNM that is not plain 8 or 16 bits"
    return None


def _tiff_conversion_reason(image: TiffImageFile) -> str | None:
    tags = image.tag_v2
    bits, channels = set(tags.get(tiff.BITS, (1,))), tags.get(tiff.CHANNELS, 1)
    compression = image.info.get("compression")
    if compression not in _TIFF_COMPRESSIONS:
        return f"TIFF with {compression} compression"
    if 1 in tags.get(tiff.EXTRA_SAMPLES, ()):
        return "TIFF with premultiplied alpha"
    if tags.get(tiff.PLANES) == 2 and channels > 1:
        plain = bits == {8} and channels == 3 and image.mode == "RGB" and tiff.TILE_WIDTH not in tags
        return None if plain else f"TIFF of {channels} separate planes of {max(bits)} bits"
    plain = (
        image.mode in _TIFF_MODES
        and bits in ({8}, {16})
        and (image.mode != "L" or channels == 1)
        and (image.mode != "CMYK" or tags.get(tiff.BITS) == (8, 8, 8, 8))
    )
    return None if plain else f"TIFF of mode {image.mode} with {max(bits)} bits"


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height before rotation; `Image.size` of a TIFF changes when it is decoded."""
    if isinstance(image, TiffImageFile):
        return int(image.tag_v2[tiff.WIDTH]), int(image.tag_v2[tiff.HEIGHT])
    return image.size


def tile_pixels(image: Image.Image) -> int:
    """Return the pixels of one tile of a TIFF, possibly more than the image has; 0 for other formats."""
    if not isinstance(image, TiffImageFile):
        return 0
    return int(image.tag_v2.get(tiff.TILE_WIDTH, 0)) * int(image.tag_v2.get(tiff.TILE_HEIGHT, 0))


def _codec(image: Image.Image) -> tuple[str, str]:
    """Return the name of PIL's decoder and its raw mode."""
    codec, _, _, arguments = image.tile[0]  # type: ignore[attr-defined]
    return codec, str(arguments[0] if isinstance(arguments, tuple) else arguments)
