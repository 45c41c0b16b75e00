"""Options of checking and re-encoding one image, light to import."""

from dataclasses import dataclass
from typing import Literal

from coma.errors import UsageError
from coma.shards.option import option, validate

MAX_PIXELS = 2**26
"""Above this an image is set aside as a bomb: a progressive JPEG of that size keeps a worker under 1 GiB."""
MOST_PIXELS = 178_956_970
"""PIL refuses more by itself."""
JPEG_SIDE = 65_500
"""Longest side of a JPEG, in pixels."""
MOST_CHANNELS = 32
"""Channels that a sample may have."""
_PANEL = "Images"


def pixels_in_words(channels: int, dtype: str) -> str:
    """Return channels and type as messages have them: `13 channels of uint16`."""
    return f"{channels} channel{'s' if channels > 1 else ''} of {dtype}"


@dataclass(frozen=True)
class PixelOptions:
    """What is checked of an image, and what is done to it. Raises UsageError for a value outside its limits."""

    resize_px: int | None = option(
        None,
        flag="--resize",
        help="Re-encode as JPEG with the shorter side at most this long, in pixels.",
        panel=_PANEL,
        metavar="PX",
        least=1,
        most=JPEG_SIDE,
        shown_default="bytes as they are",
    )
    quality: int = option(
        90, help="JPEG quality, 1 to 100, with --resize.", panel=_PANEL, metavar="Q", least=1, most=100
    )
    decode: bool = True
    """Decode every image in full; False looks at its header alone."""
    max_pixels: int = option(  # half of it for WebP, JPEG 2000 and AVIF, which take twice the memory
        MAX_PIXELS,
        help="Number of pixels above which an image is set aside as a decompression bomb.",
        panel=_PANEL,
        least=1,
        most=MOST_PIXELS,
    )

    channels: int | None = option(
        None,
        help="Take TIFF, PNG, .npy and DICOM of this many channels, 1 to 32, at their own depth.",
        panel=_PANEL,
        metavar="N",
        least=1,
        most=MOST_CHANNELS,
        shown_default="8-bit RGB",
    )
    dtype: Literal["uint8", "uint16", "int16", "float32"] | None = option(
        None,
        help="Type of the values, with --channels: uint8, uint16, int16 or float32.",
        panel=_PANEL,
        metavar="TYPE",
        shown_default="that of the first image",
    )
    uncompressed: bool = option(
        False, help="Write samples as .npy, with --channels: more bytes, and far less time to read.", panel=_PANEL
    )

    def __post_init__(self) -> None:
        """Check the limits."""
        validate(self)
        if self.channels is None and self.dtype is not None:
            raise UsageError(f"--dtype {self.dtype} only matters with --channels N, the number of channels")
        if self.channels is None and self.uncompressed:
            raise UsageError("--uncompressed only matters with --channels N, the number of channels")
        if self.channels is not None and self.resize_px is not None:
            raise UsageError(
                f"--resize {self.resize_px} makes 8-bit JPEGs, and --channels {self.channels} keeps all values; "
                "leave one out"
            )
        if self.channels is not None and not self.decode:
            raise UsageError(
                f"--check header does not read the values, whose mean and deviation --channels {self.channels} needs; "
                "leave one out"
            )
