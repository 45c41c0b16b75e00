"""Check an image, measure it, and change it where the stream would not show what a person sees.

What a person sees is what PIL shows of the first picture, upright and in RGB. The stream's decoder (DALI 2.4,
nvImageCodec) shows the same of most files, and those pass untouched. Where it shows something else, or cannot
decode what PIL can, the image becomes an 8-bit PNG; where the file is damaged, it is set aside.
"""

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from coma.shards.images.formats import FORMATS, one_line, opened
from coma.shards.images.formats import BadImageError as BadImageError
from coma.shards.images.headers import (
    oddity,
    png_chunks,
    seen_orientation,
    stored_size,
    tile_pixels,
    whole_jpeg,
)
from coma.shards.images.options import JPEG_SIDE, MOST_PIXELS
from coma.shards.images.options import MAX_PIXELS as MAX_PIXELS
from coma.shards.images.options import PixelOptions as PixelOptions

EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp", "bmp": "bmp", "tiff": "tif", "pnm": "ppm"}
"""What an image is called in a shard, by what its bytes are, whatever its file was called."""

_HEAVY = frozenset({"WEBP", "JPEG2000", "AVIF"})  # decoding takes 17 to 24 bytes a pixel, others 4 to 12
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
_QUARTER_TURNS = frozenset(_TURN[orientation] for orientation in (5, 6, 7, 8))
_TURNING = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})  # where PIL may find one


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
    """Why `data` are not the bytes that came in, in a few words; None if they are."""


@dataclass(frozen=True)
class _Look:
    """What the header says."""

    image: Image.Image
    """Opened, not yet decoded (a few have to be to know their orientation)."""
    facts: ImageFacts
    turn: Image.Transpose | None
    """What makes the decoded image upright."""
    oddity: str | None
    """Why the stream would not show what a person sees."""


def prepare_image(data: bytes, options: PixelOptions) -> Prepared:
    """Check an image; convert it if the stream would show it wrong, re-encode it if that is asked for.

    A resized image is an upright JPEG: Lanczos, never enlarging; a JPEG that is small enough already and
    upright keeps its bytes. Alpha and colour profiles are dropped, as decoding for training drops them.

    Raises:
        BadImageError: if the image must not reach a shard.
    """
    with _quiet, _faults_named():
        look = _look(data, options.max_pixels, options.decode)
        facts = look.facts
        if options.resize_px is not None:
            plain = facts.format == "jpeg" and look.turn is None and look.oddity is None
            if not (plain and min(facts.width, facts.height) <= options.resize_px):
                return _resized(look, data, options.resize_px, options.quality)
        if look.oddity is not None:
            return _converted(look, data)
        if options.decode:
            _decode_for_faults(look.image, data)
        return Prepared(data, facts, None)


def check_image(data: bytes, max_pixels: int = MAX_PIXELS, decode: bool = True) -> ImageFacts:
    """Measure an image that the stream can decode as it is; decode it in full unless told not to.

    Raises:
        BadImageError: if it is no good, or would have to be converted first.
    """
    with _quiet, _faults_named():
        look = _look(data, max_pixels, decode)
        if look.oddity is not None:
            raise BadImageError(f"unsupported format: {look.oddity} (`coma shard` converts such an image)")
        if decode:
            _decode_for_faults(look.image, data)
        return look.facts


def _look(data: bytes, max_pixels: int, checksums: bool) -> _Look:
    if not data:
        raise BadImageError("empty")
    image = opened(data, max_pixels)
    name = str(image.format)
    width, height = stored_size(image)
    limit = max_pixels // 2 if name in _HEAVY else max_pixels
    if (tile := tile_pixels(image)) > limit:
        raise BadImageError(f"bomb: a tile of {tile} pixels, the limit is {limit}")
    if width * height > limit:
        of = f" for {name}" if name in _HEAVY else ""
        raise BadImageError(f"bomb: {width}x{height} pixels, the limit{of} is {limit}")
    if name != "MPO" and getattr(image, "is_animated", False):
        raise BadImageError(f"animated: a {name} of several pictures")
    chunks = png_chunks(data, checksums) if name == "PNG" else None
    odd = oddity(image, data, chunks)
    if chunks is not None and chunks.late_metadata:
        image.load()  # PIL looks at what follows the pixels only then
    orientation = _orientation(image)
    if odd is None and orientation != seen_orientation(image, chunks):
        xmp = "exif" not in image.info and ("xmp" in image.info or "XML:com.adobe.xmp" in image.info)
        odd = f"orientation in {'XMP' if xmp else 'an unusual place'}"
    if orientation >= 5:  # turned by a quarter
        width, height = height, width
    turn = _TURN.get(orientation) if name != "TIFF" else None  # PIL turns TIFFs as it decodes them
    return _Look(image, ImageFacts(width, height, FORMATS[name]), turn, odd)


def _orientation(image: Image.Image) -> int:
    if image.info.keys().isdisjoint(_TURNING) and image.format != "TIFF":
        return 1
    try:
        # Not a PNG's own method, which would decode it first.
        orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # PIL raises all kinds of things over damaged EXIF, and viewers ignore it
        return 1
    return orientation if orientation in _TURN else 1


def _decode_for_faults(image: Image.Image, data: bytes) -> None:
    """Decode for the faults alone: every code of a JPEG is read, but few pixels are made of them, in grey."""
    _drafted(image, data, "L", (1, 1))


def _drafted(
    image: Image.Image, data: bytes, mode: str | None, size: tuple[int, int]
) -> tuple[Image.Image, tuple[float, float, float, float] | None]:
    """Decode a JPEG at the fraction that still has `size`, anything else in full; return it and PIL's draft box."""
    draft = image.draft(mode, size)  # None if it is no JPEG
    if draft is not None:
        try:
            _decode(image, data)
        except (
            Exception
        ):  # a lossless JPEG has no fractions; if there is anything else to say, it is said below
            image = opened(data, MOST_PIXELS)
        else:
            return image, draft[1]
    _decode(image, data)
    return image, None


def _decode(image: Image.Image, data: bytes) -> None:
    image.load()
    if image.format in ("JPEG", "MPO") and not whole_jpeg(data):
        raise BadImageError("truncated: no end-of-image marker")


def _converted(look: _Look, data: bytes) -> Prepared:
    _decode(look.image, data)
    upright = _upright(_eight_bits(look.image), look)
    upright.info.clear()  # what is said of transparency and colours no longer holds
    encoded = io.BytesIO()
    upright.save(encoded, "PNG", compress_level=3)  # half the time of 6, and 2% more bytes
    return Prepared(encoded.getvalue(), ImageFacts(*upright.size, "png"), look.oddity)


def _resized(look: _Look, data: bytes, shorter_px: int, quality: int) -> Prepared:
    scale = min(1.0, shorter_px / min(look.facts.width, look.facts.height))
    width = max(1, round(look.facts.width * scale))
    height = max(1, round(look.facts.height * scale))
    if max(width, height) > JPEG_SIDE:
        raise BadImageError(f"unsupported format: {width}x{height} pixels, a JPEG holds {JPEG_SIDE}")
    size = (height, width) if look.turn in _QUARTER_TURNS else (width, height)
    image, box = _decoded_for(look, data, size)
    small = _eight_bits(image)
    if small.size != size:
        small = small.resize(size, Image.Resampling.LANCZOS, box)
    upright = _upright(small, look)
    upright.info.clear()  # the source's comment, profile and EXIF
    encoded = io.BytesIO()
    upright.save(encoded, "JPEG", quality=quality)
    return Prepared(encoded.getvalue(), ImageFacts(*upright.size, "jpeg"), "resized")


def _decoded_for(
    look: _Look, data: bytes, size: tuple[int, int]
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """Decode an image that is to be resized, and return with it the part of it that counts.

    libjpeg decodes at a fraction, though at twice the size asked for or more: within 42 dB of decoding it all
    and up to four times as fast.
    """
    image, draft = _drafted(look.image, data, None, (2 * size[0], 2 * size[1]))
    return image, (0.0, 0.0, float(image.width), float(image.height)) if draft is None else draft


def _upright(image: Image.Image, look: _Look) -> Image.Image:
    return image if look.turn is None else image.transpose(look.turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """As mode L or RGB; of 16-bit greys the high byte."""
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I"):
        return Image.fromarray((np.clip(np.asarray(image), 0, 0xFFFF) >> 8).astype(np.uint8))
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


class _Quiet:
    """Silences what PIL warns of: odd EXIF and the like. `warnings.catch_warnings`, for threads side by side."""

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
def _faults_named() -> Iterator[None]:
    try:
        yield
    except BadImageError:
        raise
    except Exception as error:
        said = one_line(error)
        cut = isinstance(error, EOFError) or re.search(
            "truncated|end of|not enough|cannot load", said.lower()
        )
        raise BadImageError(f"{'truncated' if cut else 'unreadable'}: {said}") from None
