"""Options of checking and re-encoding one image, light to import."""

from dataclasses import dataclass

from coma.shards.option import option, validate

MAX_PIXELS = 2**26
"""Above this an image is set aside as a bomb: a progressive JPEG of that size keeps a worker under 1 GiB."""
MOST_PIXELS = 178_956_970
"""PIL refuses more by itself."""
JPEG_SIDE = 65_500
"""Longest side of a JPEG, in pixels."""
_PANEL = "Images"


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

    def __post_init__(self) -> None:
        """Check the limits."""
        validate(self)
