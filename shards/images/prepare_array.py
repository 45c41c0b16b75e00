"""Checks of a sample that is not an 8-bit RGB image, and its lossless re-encoding where its bytes are not read fast.

Nothing is cut, scaled or turned into another type: what does not fit the data set is set aside by name.
"""

import numpy as np

from coma.shards.images.array_files import npy
from coma.shards.images.arrays import ArrayFacts, Pixels, array_facts, read_array, read_window
from coma.shards.images.options import PixelOptions, pixels_in_words
from coma.shards.images.prepare import BadImageError, ImageFacts, Prepared
from coma.shards.manifest.pixel_coding import DTYPES

_BYTES_PER_PIXEL = 4
"""What a sample may have for each pixel of `--max-pixels`: with its file and its re-encoding, under 1 GiB a worker."""


def prepare_array(data: bytes, options: PixelOptions) -> Prepared:
    """Check a sample of `options.channels` channels of type `options.dtype` (None: any that there is).

    Raises:
        BadImageError: the sample must not reach a shard.
    """
    if not data:
        raise BadImageError("empty")
    facts = array_facts(data, options.channels)
    check_fit(facts.channels, facts.dtype, options)
    _check_size(facts, options.max_pixels)
    array = read_array(data, facts)
    if array.shape != (facts.height, facts.width, facts.channels) or array.dtype.name != facts.dtype:
        raise BadImageError("unreadable: it holds other pixels than its header says")
    check_finite(array)
    height, width, _ = array.shape
    source = ImageFacts(width, height, facts.format)
    why = facts.why or ("uncompressed" if options.uncompressed and facts.format != "npy" else None)
    if why is None:
        return Prepared(data, source, None, source, facts.turned, array)
    return Prepared(npy.encode(array), ImageFacts(width, height, "npy"), why, source, facts.turned, array)


def check_array(data: bytes, channels: int, dtype: str, decode: bool = True) -> ImageFacts:
    """Check and measure a sample of a shard; with `decode`, read all of it. Raises BadImageError."""
    facts = array_facts(data)
    if (facts.channels, facts.dtype) != (channels, dtype):
        raise BadImageError(f"{pixels_in_words(facts.channels, facts.dtype)}, not {channels} of {dtype}")
    if not facts.kept:
        raise BadImageError(f"unsupported format: {facts.why} (`coma shard` converts such a sample)")
    if decode:
        check_finite(read_window(data, facts.format, 0, 0, facts.height, facts.width))
    return ImageFacts(facts.width, facts.height, facts.format)


def check_fit(channels: int, dtype: str, options: PixelOptions) -> None:
    """Raise BadImageError, with what it is and the way out, for a sample of other channels or another type."""
    if dtype not in DTYPES:
        raise BadImageError(
            f"unsupported format: values of {dtype}, where coma reads {', '.join(DTYPES)}; save it as one of them"
        )
    if options.channels is not None and channels != options.channels:
        count = "1 channel" if channels == 1 else f"{channels} channels"
        raise BadImageError(f"other channels: {count}, where --channels says {options.channels}")
    if options.dtype is not None and dtype != options.dtype:
        raise BadImageError(f"other type: {dtype}, where the data set has {options.dtype} (--dtype)")


def _check_size(facts: ArrayFacts, max_pixels: int) -> None:
    if facts.pixels > max_pixels:
        raise BadImageError(f"bomb: {facts.width}x{facts.height} pixels, the limit is {max_pixels}")
    if facts.pixel_bytes > max_pixels * _BYTES_PER_PIXEL:
        raise BadImageError(
            f"bomb: {facts.pixel_bytes:,} bytes of pixels, the limit is {max_pixels * _BYTES_PER_PIXEL:,} "
            f"({_BYTES_PER_PIXEL} for each of --max-pixels {max_pixels})"
        )


def check_finite(array: Pixels) -> None:
    """Raise BadImageError, with their number, if there are values that are not finite."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = array.size - int(np.isfinite(array).sum())
        raise BadImageError(
            f"not finite: {count:,} of {array.size:,} values are NaN or infinite; replace them, for example by the "
            "value of missing pixels"
        )
