"""Check an image: is it whole, can the stream decode it, how large is it displayed; re-encode it if asked."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 178_956_970
"""Above this an image is set aside as a bomb (PIL's own limit: twice 256 MiB of 3-byte pixels)."""

_FORMATS = {
    "JPEG": "jpeg",
    "MPO": "jpeg",  # a phone's JPEG with a second picture appended; every decoder shows the first
    "PNG": "png",
    "WEBP": "webp",
    "BMP": "bmp",
    "TIFF": "tiff",
    "PPM": "pnm",
}
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "I;16B"})
_TIFF_MODES = frozenset({"L", "P", "RGB", "RGBA", "CMYK", "I;16", "I;16B"})  # what DALI shows as PIL does
_TIFF_COMPRESSIONS = frozenset({"raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "jpeg"})
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*", b"GIF8")
_ORIENTATION = 0x0112  # EXIF tag
_TURN = {  # what makes an image of that orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImageError(Exception):
    """An image that must not reach a shard; the message is the reason that the quarantine records.

    Reasons start with one of: empty, not an image, truncated, animated, unsupported format, bomb, unreadable.
    """


EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp", "bmp": "bmp", "tiff": "tif", "pnm": "ppm"}
"""What an image is called in a shard, by what its bytes are, whatever its file was called."""


@dataclass(frozen=True)
class PixelOptions:
    """What is checked of an image, and what is done to it."""

    resize_px: int | None = None
    """Re-encode as JPEG with the shorter side at most this long; None passes the bytes through."""
    quality: int = 90
    """JPEG quality of re-encoded images, 1 to 100."""
    decode: bool = True
    """Decode every image in full; False looks at its header alone."""
    max_pixels: int = MAX_PIXELS
    """An image with more is a bomb."""


@dataclass(frozen=True)
class ImageFacts:
    """What the manifest records of an image."""

    width: int
    """Pixels, as displayed: after EXIF orientation."""
    height: int
    format: str
    """What the bytes are, whatever the file is called: "jpeg", "png", "webp", "bmp", "tiff", "pnm"."""


@dataclass(frozen=True)
class Prepared:
    """An image as it goes into a shard."""

    data: bytes
    facts: ImageFacts
    converted: str | None
    """Why `data` are not the bytes that came in; None if they are."""


def prepare_image(data: bytes, options: PixelOptions) -> Prepared:
    """Check an image, and re-encode it if that is asked for. Raises BadImageError."""
    if options.resize_px is None:
        return Prepared(data, check_image(data), None)
    resized, facts = check_and_resize(data, options.resize_px, options.quality)
    return Prepared(resized, facts, None if resized is data else "resized")


def check_image(data: bytes) -> ImageFacts:
    """Decode an encoded image in full and measure it. Raises BadImageError if it is no good."""
    image = _decoded(data)
    width, height = image.size
    if _orientation(image) >= 5:  # turned by a quarter
        width, height = height, width
    return ImageFacts(width, height, _FORMATS[str(image.format)])


def check_and_resize(data: bytes, shorter_px: int, quality: int) -> tuple[bytes, ImageFacts]:
    """Check an image and return it as an upright JPEG whose shorter side is at most `shorter_px` pixels.

    Lanczos, never enlarging; a JPEG that is small enough already and upright keeps its bytes. Alpha and
    colour profiles are dropped, as decoding for training drops them. Raises BadImageError.
    """
    image = _decoded(data)
    facts = ImageFacts(*image.size, _FORMATS[str(image.format)])
    if facts.format == "jpeg" and min(image.size) <= shorter_px and _orientation(image) == 1:
        return data, facts
    upright = _rgb(image)
    if (turn := _TURN.get(_orientation(image))) is not None:
        upright = upright.transpose(turn)
    scale = shorter_px / min(upright.size)
    if scale < 1:
        size = (max(1, round(upright.width * scale)), max(1, round(upright.height * scale)))
        upright = upright.resize(size, Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    upright.save(encoded, "JPEG", quality=quality, exif=b"", icc_profile=None)
    return encoded.getvalue(), ImageFacts(*upright.size, "jpeg")


def _decoded(data: bytes) -> Image.Image:
    if not data:
        raise BadImageError("empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's remarks on odd EXIF and on large images
        try:
            image = Image.open(io.BytesIO(data))
        except UnidentifiedImageError:
            raise BadImageError(_unidentified(data)) from None
        except Image.DecompressionBombError:
            raise BadImageError(f"bomb: more than {MAX_PIXELS} pixels") from None
        except Exception as error:
            raise BadImageError(f"{_kind(error)}: {_one_line(error)}") from None
        try:
            _refuse(image)
            image.load()
            _orientation(image)
        except BadImageError:
            raise
        except Exception as error:
            raise BadImageError(f"{_kind(error)}: {_one_line(error)}") from None
    if image.format in ("JPEG", "MPO") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        # Entropy-coded bytes never hold a marker, so no end of image after the last scan means a lost tail,
        # which libjpeg would paint grey in silence.
        raise BadImageError("truncated: no end-of-image marker")
    return image


def _refuse(image: Image.Image) -> None:
    """Refuse by the header what is not worth decoding, or what the stream's decoder would not decode."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImageError(f"bomb: {width}x{height} pixels, the limit is {MAX_PIXELS}")
    name = str(image.format)
    if name != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise BadImageError(f"animated: {name} with {getattr(image, 'n_frames', 1)} frames")
    if name not in _FORMATS:
        raise BadImageError(f"unsupported format: {name}")
    if image.mode not in (_TIFF_MODES if name == "TIFF" else _MODES):
        raise BadImageError(f"unsupported format: {name} of mode {image.mode}")
    compression = image.info.get("compression")
    if name == "TIFF" and compression not in _TIFF_COMPRESSIONS:
        raise BadImageError(f"unsupported format: {name} with {compression} compression")


def _unidentified(data: bytes) -> str:
    known = data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
    return "truncated: the header is cut" if known else "not an image"


def _kind(error: Exception) -> str:
    cut = isinstance(error, EOFError) or "truncated" in str(error).lower() or "end of" in str(error).lower()
    return "truncated" if cut else "unreadable"


def _orientation(image: Image.Image) -> int:
    value = image.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        high_bytes = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(high_bytes).convert("RGB")
    return image.convert("RGB")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
