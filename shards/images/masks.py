"""Segmentation masks: values of their pixels, checks against the image and the classes, and conversion to PNG.

Legend: H, W sides of a mask in pixels.
"""

import functools
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from coma.shards.images.prepare import MAX_PIXELS, BadImageError, Prepared, open_decoded
from coma.shards.manifest.mask_coding import IGNORED, MaskCoding

MASK_EXTENSION = "mask.png"
"""What follows a sample's key in the name of its mask."""
COLOURS_WAY_OUT = (
    "save class ids in one channel, or give a file of lines such as `128 64 0 road` as --mask-classes FILE"
)

_LOSSY = frozenset({"JPEG", "MPO", "JPEG2000", "AVIF", "WEBP"})
_NAMED_VALUES = 3  # in a reason
_SCALE = {2: 85, 4: 17}  # bits of a grey PNG → what PIL multiplies its values by

Values = npt.NDArray[Any]
ClassIds = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PreparedMask:
    """A mask as it is written to a shard."""

    data: bytes
    """A PNG: the source's own bytes if they are one of the right size."""
    converted: str | None
    """Why `data` differ from the source's bytes, in a few words; None if they are the same."""
    last_class: int
    """Greatest class id of its pixels, -1 if none has a class."""


@dataclass(frozen=True)
class _Decoded:
    """A mask's pixels."""

    image: Image.Image
    """Upright, with the values of the source."""
    values: Values
    """[H, W] integers: grey levels, palette indices, or colours as 0xRRGGBB."""
    converted: str | None
    """Why the source's bytes cannot stay."""


def prepare_mask(
    data: bytes, path: str, image: Prepared, coding: MaskCoding, max_pixels: int = MAX_PIXELS
) -> PreparedMask:
    """Check a mask and bring it to the size that its image has in the shard, by nearest neighbours.

    Args:
        data: bytes of the source's file.
        path: its name, for reasons.
        image: the image that it belongs to.
        coding: its classes.
        max_pixels: number of pixels above which it is refused.

    Raises:
        BadImageError: it must not reach a shard.
    """
    decoded = _decode(data, path, coding.in_colour, max_pixels)
    height, width = decoded.values.shape
    source = image.source
    if (width, height) != (source.width, source.height):
        stored = image.turned and (height, width) == (source.width, source.height)
        hint = " by its EXIF orientation: turn the mask as well" if stored else ""
        raise BadImageError(
            f"mask of another size: {path} has {width}x{height} pixels, its image is shown as "
            f"{source.width}x{source.height}{hint}"
        )
    ids, outside = class_ids(decoded.values, coding)
    if outside:
        raise BadImageError(f"mask outside the classes: {path} holds {_outside(outside, coding)}")
    last_class = int(np.where(ids == IGNORED, -1, ids.astype(np.int16)).max())
    size = (image.facts.width, image.facts.height)
    if size == (width, height) and decoded.converted is None:
        return PreparedMask(data, None, last_class)
    resized = size != (width, height)
    return PreparedMask(
        data=_as_png(decoded.image.resize(size, Image.Resampling.NEAREST) if resized else decoded.image),
        converted="mask resized" if resized else decoded.converted,
        last_class=last_class,
    )


def decode_mask(data: bytes, coding: MaskCoding, max_pixels: int = MAX_PIXELS) -> ClassIds:
    """Decode a mask to class ids [H, W], `IGNORED` where there is no class.

    Raises:
        BadImageError: it is damaged, or a value stands for no class.
    """
    ids, outside = class_ids(_decode(data, "it", coding.in_colour, max_pixels).values, coding)
    if outside:
        raise BadImageError(f"mask outside the classes: it holds {_outside(outside, coding)}")
    return ids


def mask_values(data: bytes, path: str, max_pixels: int = MAX_PIXELS) -> tuple[list[int], bool]:
    """Return the values that occur in a mask, which reasons call `path`, and whether they are colours.

    Raises:
        BadImageError: it is damaged, or no mask.
    """
    decoded = _decode(data, path, None, max_pixels)
    return np.unique(decoded.values).tolist(), decoded.image.mode == "RGB"


def class_ids(values: Values, coding: MaskCoding) -> tuple[ClassIds, list[int]]:
    """Return the class ids [H, W] of values, and those of the values that stand for no class and are not ignored."""
    if coding.in_colour:
        colours, at = np.unique(values, return_inverse=True)
        table = _ids_of_values(coding)
        ids = np.array([table.get(colour, -1) for colour in colours.tolist()], np.int16)[at].reshape(values.shape)
    else:
        ids = _table(coding)[values]
    outside = np.unique(values[ids < 0]).tolist() if ids.min() < 0 else []
    return ids.astype(np.uint8), outside


def _ids_of_values(coding: MaskCoding) -> dict[int, int]:
    table = {value: number for number, value in enumerate(coding.values)}
    return table if coding.ignored is None else table | {coding.ignored: IGNORED}


@functools.lru_cache(maxsize=4)
def _table(coding: MaskCoding) -> npt.NDArray[np.int16]:
    """Return the class id of every value of 16 bits, -1 for a value that is none."""
    table = np.full(0x10000, -1, np.int16)
    for value, number in _ids_of_values(coding).items():
        table[value : value + 1] = number  # nothing for a colour
    return table


def _outside(values: list[int], coding: MaskCoding) -> str:
    """Say which values stand for no class, and which do."""
    named = ", ".join(map(coding.shown, values[:_NAMED_VALUES])) + (", ..." if len(values) > _NAMED_VALUES else "")
    if coding.in_colour:
        classes = f"none of the {len(coding.values):,} colours of the classes"
    elif coding.values == tuple(range(coding.values[0], coding.values[-1] + 1)):
        classes = f"the classes are {coding.values[0]} to {coding.values[-1]}"
    else:
        classes = f"the classes are {', '.join(map(str, coding.values[:8]))}{', ...' if coding.values[8:] else ''}"
    ignored = "" if coding.ignored is None else f", {coding.shown(coding.ignored)} is none"
    return f"{named}; {classes}{ignored}"


def _decode(data: bytes, path: str, in_colour: bool | None, max_pixels: int) -> _Decoded:
    """Decode a mask; `in_colour` says whether its values are colours, None takes them for it if they are any."""
    try:
        image, name, reason = open_decoded(data, max_pixels)
    except BadImageError as error:
        raise BadImageError(f"mask damaged: {path}: {error}") from None
    if name in _LOSSY:
        raise BadImageError(f"mask is lossy: {path} is a {name}, which changes values; save masks as PNG")
    if name != "PNG" and reason is not None and name != "GIF":
        raise BadImageError(f"mask damaged: {path}: unsupported format: {reason}; save it as PNG")
    values = _values(image, data, path, name, in_colour)
    if values.ndim == 3:
        channels = values.astype(np.uint32)
        values = channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
        image = image.convert("RGB")
    elif image.mode != "P":
        image = Image.fromarray(values.astype(np.uint8 if values.max() < 256 else np.uint16))
    return _Decoded(image, values, None if name == "PNG" and reason is None else f"mask: {reason or name}")


def _values(image: Image.Image, data: bytes, path: str, name: str, in_colour: bool | None) -> Values:
    """Return the values of a decoded image [H, W], or of a coloured one [H, W, 3]."""
    mode = image.mode
    pixels = np.asarray(image)
    if mode == "1":
        return pixels.astype(np.uint8)
    if mode == "P" and not in_colour:
        return pixels
    if mode == "P":
        return np.asarray(image.convert("RGB"))
    if mode == "L" and not in_colour:
        bits, kind = (data[24], data[25]) if name == "PNG" else (8, 0)
        return pixels // _SCALE[bits] if kind == 0 and bits in _SCALE else pixels
    if mode.startswith("I") and not in_colour:
        wide = pixels.astype(np.int64)
        wide[(wide < 0) | (wide > 0xFFFF)] = 0xFFFF  # the value of no class
        return wide
    if mode in ("LA", "RGBA"):
        if pixels[..., -1].min() < 255:
            raise BadImageError(f"mask in colours: {path} is partly transparent; {COLOURS_WAY_OUT}")
        pixels = pixels[..., :-1]
    elif mode not in ("L", "RGB"):
        raise BadImageError(f"mask damaged: {path}: unsupported format: pixels of mode {mode}; save it as PNG")
    if pixels.ndim == 2 or pixels.shape[-1] == 1:
        grey = pixels.reshape(pixels.shape[:2])
        return np.stack([grey] * 3, axis=-1) if in_colour else grey
    if in_colour:
        return pixels
    if (pixels == pixels[..., :1]).all():  # a grey image that was saved in colour
        return pixels[..., 0]
    if in_colour is None:
        return pixels
    raise BadImageError(f"mask in colours: {path} has three channels; {COLOURS_WAY_OUT}")


def _as_png(image: Image.Image) -> bytes:
    image.info = {}  # texts, an orientation that has been applied
    encoded = io.BytesIO()
    image.save(encoded, "PNG", compress_level=6)
    return encoded.getvalue()
