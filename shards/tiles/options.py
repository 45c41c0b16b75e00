"""Options of cutting images into tiles."""

from dataclasses import dataclass
from typing import Literal

from coma.errors import UsageError
from coma.shards.option import option, validate

_PANEL = "Tiles"
_MOST_SIDE = 8192
"""Side of a tile in pixels: a worker holds a few of them."""


@dataclass(frozen=True, kw_only=True)
class TileOptions:
    """How images are cut into tiles. Raises UsageError for a value outside its limits."""

    tile: int | None = option(
        None,
        help="Cut each image into tiles of this many pixels a side, which are the samples.",
        panel=_PANEL,
        metavar="PX",
        least=16,
        most=_MOST_SIDE,
        shown_default="images whole",
    )
    overlap: int = option(
        0, help="Pixels that neighbouring tiles share, with --tile.", panel=_PANEL, metavar="PX", least=0
    )
    empty_below: float | None = option(
        None,
        help="Leave out tiles in which every channel's standard deviation is below this, in the image's own units.",
        panel=_PANEL,
        metavar="T",
        above=0,
        shown_default="all tiles are kept",
    )
    tile_format: Literal["png", "jpeg"] = option(
        "png",
        help="Format of 8-bit RGB tiles: png keeps every value, jpeg is far smaller (--quality).",
        panel=_PANEL,
    )

    def __post_init__(self) -> None:
        """Check the limits."""
        validate(self)
        if self.tile is None:
            for flag, value, default in (
                ("--overlap", self.overlap, 0),
                ("--empty-below", self.empty_below, None),
                ("--tile-format", self.tile_format, "png"),
            ):
                if value != default:
                    raise UsageError(f"{flag} {value} only matters with --tile PX, the side of a tile")
        elif self.overlap > self.tile // 2:
            raise UsageError(
                f"--overlap {self.overlap} is more than half of --tile {self.tile}; give {self.tile // 2} or less"
            )
