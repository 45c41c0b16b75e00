"""Checks of an image, its measures, and its conversion where the stream would not show what a person sees.

What a person sees is what PIL shows of the first picture, upright and in RGB. The stream's decoder (DALI 2.4,
nvImageCodec) shows the same for most files, and those pass unchanged. Where it shows something else, or cannot
decode what PIL can, the image becomes an 8-bit PNG; where the file is damaged, it is set aside.
"""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from coma.shards.images import tiff
from coma.shards.images.formats import FORMATS, Once, fault, open_image
from coma.shards.images.formats import BadImageError as BadImageError
from coma.shards.images.headers import (
    conversion_reason,
    decoder_orientation,
    has_end_marker,
    stored_size,
    tile_pixels,
)
from coma.shards.images.options import JPEG_SIDE, MOST_PIXELS
from coma.shards.images.options import MAX_PIXELS as MAX_PIXELS
from coma.shards.images.options import PixelOptions as PixelOptions
from coma.shards.images.png import PNG_SIGNATURE, png_chunks, without_long_texts

EXTENSIONS = {
    **{"jpeg": "jpg", "png": "png", "webp": "webp", "bmp": "bmp", "tiff": "tif", "pnm": "ppm"},
    "npy": "npy",
}
"""Format of an image's bytes → its extension in a shard, whatever its file was called."""

_HEAVY = frozenset({"WEBP", "JPEG2000", "AVIF"})  # decoding takes 17 to 24 bytes a pixel, others 4 to 12
_ORIENTATION = 0x0112  # EXIF tag
_TURN = {  # orientation → the transpose that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = frozenset(_TURN[orientation] for orientation in (5, 6, 7, 8))
_ORIENTATION_KEYS = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})  # of Image.info


@dataclass(frozen=True)
class ImageFacts:
    """Facts about an image that the manifest records."""

    width: int
    """Pixels, as displayed (after EXIF orientation)."""
    height: int
    format: str
    """Format of the bytes, whatever the file is called: "jpeg", "png", "webp", "bmp", "tiff" or "pnm"."""


@dataclass(frozen=True)
class Prepared:
    """An image as it is written to a shard."""

    data: bytes
    facts: ImageFacts
    converted: str | None
    """Why `data` differ from the source's bytes, in a few words; None if they are the same."""
    source: ImageFacts
    """Facts about the source's image."""
    turned: bool
    """Whether the source's image is stored with its sides swapped, and shown by its orientation."""
    array: npt.NDArray[Any] | None = None
    """Its values [H, W, C], if it is not an 8-bit RGB image."""


@dataclass(frozen=True)
class _Header:
    """An opened image and what its header says."""

    image: Image.Image
    """Not yet decoded, except for a few formats whose orientation is known only then."""
    facts: ImageFacts
    turn: Image.Transpose | None
    """The transpose that makes the decoded image upright."""
    conversion_reason: str | None
    """Why the stream would not show what a person sees."""
    is_turned: bool
    """Whether the sides are swapped."""


def prepare_image(data: bytes, options: PixelOptions) -> Prepared:
    """Check an image; convert it if the stream would show it wrongly, re-encode it if that is asked for.

    A resized image is an upright JPEG, made with Lanczos and never enlarged; a JPEG that is small enough already
    and upright keeps its bytes. Alpha and colour profiles are dropped, as decoding for training drops them.

    Raises:
        BadImageError: the image must not reach a shard.
    """
    with _quiet, _bad_image_errors():
        header = _read_header(data, options.max_pixels, options.decode)
        facts = header.facts
        if options.resize_px is not None:
            plain = facts.format == "jpeg" and header.turn is None and header.conversion_reason is None
            if not (plain and min(facts.width, facts.height) <= options.resize_px):
                return _prepared(header, *_resize(header, data, options.resize_px, options.quality), "resized")
        if header.conversion_reason is not None:
            return _prepared(header, *_convert(header, data), header.conversion_reason)
        if options.decode:
            _check_decoding(header.image, data)
        return _prepared(header, data, facts, None)


def _prepared(header: _Header, data: bytes, facts: ImageFacts, converted: str | None) -> Prepared:
    return Prepared(data, facts, converted, header.facts, header.is_turned)


def check_image(data: bytes, max_pixels: int = MAX_PIXELS, decode: bool = True) -> ImageFacts:
    """Check and measure an image that the stream can decode as it is; with `decode`, decode it in full.

    Raises:
        BadImageError: the image is damaged, or would have to be converted first.
    """
    with _quiet, _bad_image_errors():
        header = _read_header(data, max_pixels, decode)
        if (reason := header.conversion_reason) is not None:
            raise BadImageError(f"unsupported format: {reason} (`coma shard` converts such an image)")
        if decode:
            _check_decoding(header.image, data)
        return header.facts


def open_decoded(data: bytes, max_pixels: int) -> tuple[Image.Image, str, str | None]:
    """Decode an image with the values that it stores, upright.

    Returns the image, PIL's name of its format, and why other decoders would show other bytes, None if they do not.

    Raises:
        BadImageError: it is damaged.
    """
    with _quiet, _bad_image_errors():
        header = _read_header(data, max_pixels, True)
        name = str(header.image.format)
        _decode(header.image, data)
        reason = header.conversion_reason or ("orientation" if header.turn is not None else None)
        return _upright(header.image, header), name, reason


class WholeImage:
    """An image as people see it, upright and in 8-bit RGB or grey, which is decoded when it is first needed."""

    def __init__(self, header: _Header, data: bytes) -> None:
        self.facts = header.facts
        self._header = header
        self._data = data
        self.decoded = Once(self._decode)
        """Returns the pixels. Raises BadImageError."""

    def _decode(self) -> Image.Image:
        with _quiet, _bad_image_errors():
            _decode(self._header.image, self._data)
            return _upright(_eight_bits(self._header.image), self._header)


def whole_image(data: bytes, max_pixels: int) -> WholeImage:
    """Open an image and check its header. Raises BadImageError."""
    with _quiet, _bad_image_errors():
        return WholeImage(_read_header(data, max_pixels, True), data)


def _read_header(data: bytes, max_pixels: int, checksums: bool) -> _Header:
    if not data:
        raise BadImageError("empty")
    shown = without_long_texts(data) if data.startswith(PNG_SIGNATURE) else data
    image = open_image(shown, max_pixels)
    name = str(image.format)
    width, height = stored_size(image)
    limit = max_pixels // 2 if name in _HEAVY else max_pixels
    if (tile := tile_pixels(image)) > limit:
        raise BadImageError(f"bomb: a tile of {tile} pixels, the limit is {limit}")
    if width * height > limit:
        of = f" for {name}" if name in _HEAVY else ""
        raise BadImageError(f"bomb: {width}x{height} pixels, the limit{of} is {limit}")
    if getattr(image, "is_animated", False) and name != "MPO" and (name != "TIFF" or tiff.has_several_pictures(data)):
        raise BadImageError(f"animated: a {name} of several pictures")
    chunks = png_chunks(data, checksums) if name == "PNG" else None
    reason = conversion_reason(image, data, chunks)
    if reason is None and shown is not data:
        reason = "PNG with a longer text or profile than PIL reads"
    if chunks is not None and chunks.late_metadata:
        image.load()  # only then PIL reads what follows the pixels
    orientation = _orientation(image)
    if reason is None and orientation != decoder_orientation(image, chunks):
        xmp = "exif" not in image.info and ("xmp" in image.info or "XML:com.adobe.xmp" in image.info)
        reason = f"orientation in {'XMP' if xmp else 'an unusual place'}"
    if orientation >= 5:  # turned by a quarter
        width, height = height, width
    turn = _TURN.get(orientation) if name != "TIFF" else None  # PIL turns TIFFs as it decodes them
    return _Header(image, ImageFacts(width, height, FORMATS[name]), turn, reason, orientation >= 5)


def _orientation(image: Image.Image) -> int:
    if image.info.keys().isdisjoint(_ORIENTATION_KEYS) and image.format != "TIFF":
        return 1
    try:
        # A PNG's own method would decode it first.
        orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # PIL raises many kinds of errors over damaged EXIF, which viewers ignore
        return 1
    return orientation if orientation in _TURN else 1


def _check_decoding(image: Image.Image, data: bytes) -> None:
    """Decode an image to find damage: all of a JPEG's data is read, but only at its smallest size and in grey."""
    _decode_draft(image, data, "L", (1, 1))


def _decode_draft(
    image: Image.Image, data: bytes, mode: str | None, size: tuple[int, int]
) -> tuple[Image.Image, tuple[float, float, float, float] | None]:
    """Decode a JPEG at the smallest scale that covers `size`, others in full; return the image and PIL's draft box."""
    draft = image.draft(mode, size)  # None for other formats
    if draft is not None:
        try:
            _decode(image, data)
        except Exception:  # a lossless JPEG has no scales; any other fault is raised below
            image = open_image(data, MOST_PIXELS)
        else:
            return image, draft[1]
    _decode(image, data)
    return image, None


def _decode(image: Image.Image, data: bytes) -> None:
    try:
        image.load()
    except OSError:
        if image.format == "TIFF" and tiff.is_cut(data):
            raise BadImageError("truncated: it ends before its pixels") from None
        raise
    if image.format in ("JPEG", "MPO") and not has_end_marker(data):
        raise BadImageError("truncated: no end-of-image marker")


def _convert(header: _Header, data: bytes) -> tuple[bytes, ImageFacts]:
    _decode(header.image, data)
    upright = _upright(_eight_bits(header.image), header)
    upright.info.clear()  # transparency and colour profiles no longer apply
    encoded = io.BytesIO()
    upright.save(encoded, "PNG", compress_level=3)  # half the time of 6, and 2% more bytes
    return encoded.getvalue(), ImageFacts(*upright.size, "png")


def _resize(header: _Header, data: bytes, shorter_px: int, quality: int) -> tuple[bytes, ImageFacts]:
    scale = min(1.0, shorter_px / min(header.facts.width, header.facts.height))
    width = max(1, round(header.facts.width * scale))
    height = max(1, round(header.facts.height * scale))
    if max(width, height) > JPEG_SIDE:
        raise BadImageError(f"unsupported format: {width}x{height} pixels, a JPEG holds {JPEG_SIDE}")
    size = (height, width) if header.turn in _QUARTER_TURNS else (width, height)
    # libjpeg decodes at a fraction, but at least at twice the size asked for: up to four times as fast as in full,
    # and within 42 dB of it.
    image, box = _decode_draft(header.image, data, None, (2 * size[0], 2 * size[1]))
    small = _eight_bits(image)
    if small.size != size:
        small = small.resize(size, Image.Resampling.LANCZOS, box)
    upright = _upright(small, header)
    upright.info.clear()  # the source's comment, profile and EXIF
    encoded = io.BytesIO()
    upright.save(encoded, "JPEG", quality=quality)
    return encoded.getvalue(), ImageFacts(*upright.size, "jpeg")


def _upright(image: Image.Image, header: _Header) -> Image.Image:
    return image if header.turn is None else image.transpose(header.turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert to mode L or RGB; of 16-bit greys, the high byte is kept."""
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I"):
        return Image.fromarray((np.clip(np.asarray(image), 0, 0xFFFF) >> 8).astype(np.uint8))
    if image.mode == "La":
        image = image.convert("LA")
    return image.convert("L" if image.mode in ("1", "LA") else "RGB")


class _Quiet:
    """Silences PIL's warnings about odd EXIF and the like: `warnings.catch_warnings` for concurrent threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._filters.__exit__(None, None, None)


_quiet = _Quiet()


@contextmanager
def _bad_image_errors() -> Iterator[None]:
    """Raise any error of PIL in the block as a BadImageError with a reason."""
    try:
        yield
    except BadImageError:
        raise
    except Exception as error:
        raise BadImageError(fault(error)) from None
