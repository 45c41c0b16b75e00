"""Options of `coma shard`: all but the source and the folder that its shards go to."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coma.errors import UsageError
from coma.shards.byte_sizes import parse_bytes
from coma.shards.images.options import PixelOptions
from coma.shards.option import option, option_like, validate
from coma.shards.sources.masks.options import MaskOptions
from coma.shards.sources.splits import SplitRules, parse_splits
from coma.shards.tiles.options import TileOptions

_SOURCE, _SHARDS, _IMAGES, _RUNNING = "Source", "Shards", "Images", "Running"


def parse_part(text: str, flag: str = "--part") -> tuple[int, int]:
    """Read "3/16". Raises UsageError."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if match is None:
        raise UsageError(f"{flag} {text} is not a part; write the third of sixteen as 3/16")
    return int(match[1]), int(match[2])


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """Options of sharding. Raises UsageError for a value outside its limits."""

    layout: str | None = option(
        None,
        help="Kind of source: folder, flat (no labels), masks, ade20k, voc, imagenet, kaggle, tar, webdataset, parquet "
        "or list.",
        panel=_SOURCE,
        metavar="NAME",
        shown_default="detected",
    )
    image_column: str | None = option(
        None,
        help="Column of images in a parquet source, of paths in a list.",
        panel=_SOURCE,
        metavar="NAME",
        shown_default="detected",
    )
    label_column: str | None = option(
        None,
        help="Column of labels in a parquet source or a list.",
        panel=_SOURCE,
        metavar="NAME",
        shown_default="detected",
    )
    root: Path | None = option(
        None,
        help="Folder that the paths of a list are relative to.",
        panel=_SOURCE,
        metavar="DIR",
        shown_default="the list's own",
    )
    splits: SplitRules | None = option(
        None,
        help="Folders that are splits, such as train=photos/2019,val=photos/2020; train=. is all the others.",
        panel=_SOURCE,
        metavar="SPLIT=FOLDER,...",
        parse=parse_splits,
        shown_default="told from their names",
    )
    masks: str | None = option(
        None,
        help="Segmentation masks: their folder, or names such as *_labelIds.png; none takes images alone.",
        panel=_SOURCE,
        metavar="NAMES",
        shown_default="told from their names",
    )
    mask_classes: str | None = option(
        None,
        help="Number of classes of the masks, or a file of their names, a line each.",
        panel=_SOURCE,
        metavar="N|FILE",
        shown_default="by the layout, else what the masks hold",
    )
    mask_ignore: int | Literal["none"] | None = option(
        None,
        help="Value in the masks of pixels without a class; with 0 the classes start at 1.",
        panel=_SOURCE,
        metavar="VALUE",
        least=0,
        most=0xFFFFFF,
        shown_default="255; 0 in ADE20K",
    )
    seed: int = option(0, help="Random seed of the shuffle.", panel=_SHARDS, least=0, below=2**63)
    shard_bytes: int | None = option(
        None,
        help="Size of a shard: 256MiB, 1GB, or a number of bytes.",
        panel=_SHARDS,
        metavar="SIZE",
        least=1,
        parse=parse_bytes,
        shown_default="256MiB, or less for at least 16 shards",
    )
    val_fraction: float = option(
        0.0,
        help="Share of the images to hold out as split val, if SOURCE has no validation images.",
        panel=_SHARDS,
        least=0,
        below=1,
    )
    dedupe: bool = option(False, help="Set exact duplicates aside; the source is read twice.", panel=_SHARDS)
    resize_px: int | None = option_like(PixelOptions, "resize_px")
    quality: int = option_like(PixelOptions, "quality")
    check: Literal["full", "header"] = option(
        "full", help="full: decode every image; header: read its header only, which is faster.", panel=_IMAGES
    )
    max_pixels: int = option_like(PixelOptions, "max_pixels")
    channels: int | None = option_like(PixelOptions, "channels")
    dtype: Literal["uint8", "uint16", "int16", "float32"] | None = option_like(PixelOptions, "dtype")
    uncompressed: bool = option_like(PixelOptions, "uncompressed")
    tile: int | None = option_like(TileOptions, "tile")
    overlap: int = option_like(TileOptions, "overlap")
    empty_below: float | None = option_like(TileOptions, "empty_below")
    tile_format: Literal["png", "jpeg"] = option_like(TileOptions, "tile_format")
    workers: int | None = option(
        None, help="Number of worker processes.", panel=_RUNNING, least=1, shown_default="one per core"
    )
    engine: Literal["processes", "ray"] = option(
        "processes",
        help="Where the workers run: as processes of this machine, or as tasks of a Ray cluster.",
        panel=_RUNNING,
    )
    part: tuple[int, int] | None = option(
        None,
        help="Write this part of the shards only, for array jobs; the part that ends last merges them, but not in "
        "an object store.",
        panel=_RUNNING,
        metavar="I/N",
        parse=parse_part,
    )

    def __post_init__(self) -> None:
        """Check the limits."""
        validate(self)
        _ = self.tiles  # checks them
        self._check_tiles()
        if self.resize_px is None and self.tile_format != "jpeg" and self.quality != PixelOptions.quality:
            raise UsageError(
                f"--quality {self.quality} only matters when images are re-encoded; add "
                + ("--resize PX" if self.tile is None else "--tile-format jpeg")
            )
        _ = self.pixels  # checks them
        if self.part is not None and not 1 <= self.part[0] <= self.part[1]:
            raise UsageError(
                f"--part {self.part_name} is not between 1/{self.part[1]} and {self.part[1]}/{self.part[1]}"
            )

    def _check_tiles(self) -> None:
        """Raise UsageError for options that tiles do not go with."""
        if self.tile is None:
            return
        for flag, is_set, why in (
            (f"--resize {self.resize_px}", self.resize_px is not None, "tiles keep the image's own pixels"),
            ("--check header", self.check == "header", "every tile is decoded"),
            ("--dedupe", self.dedupe, "large images are not compared"),
            ("--uncompressed", self.uncompressed, "tiles of --channels are .npy already"),
            ("--tile-format jpeg", self.tile_format == "jpeg" and self.channels is not None, "it keeps 8-bit RGB only"),
        ):
            if is_set:
                raise UsageError(f"{flag} does not go with --tile {self.tile}: {why}; leave one out")

    @property
    def tiles(self) -> TileOptions:
        """Options of cutting images into tiles."""
        return TileOptions(
            tile=self.tile, overlap=self.overlap, empty_below=self.empty_below, tile_format=self.tile_format
        )

    @property
    def pixels(self) -> PixelOptions:
        """Options for each image."""
        return PixelOptions(
            resize_px=self.resize_px,
            quality=self.quality,
            decode=self.check == "full",
            max_pixels=self.max_pixels,
            channels=self.channels,
            dtype=self.dtype,
            uncompressed=self.uncompressed,
        )

    @property
    def mask_options(self) -> MaskOptions:
        """Options for masks."""
        return MaskOptions(self.masks, self.mask_classes, self.mask_ignore)

    @property
    def part_name(self) -> str | None:
        """The part as "3/16"."""
        return None if self.part is None else f"{self.part[0]}/{self.part[1]}"


@dataclass(frozen=True, kw_only=True)
class ShardCommand(ShardOptions):
    """Options of sharding, its source and the folder that its shards go to."""

    source: Path = option(
        help="Folder of images; or ImageNet as downloaded, tars, parquet, a list of paths.", argument=True
    )
    out: Path | str | None = option(
        None,
        help="New or empty folder, or a URL (s3://bucket/name).",
        argument=True,
        shown_default="NAME-shards in the current folder",
    )
    dry_run: bool = option(False, help="Tell what would be written, and write nothing.")
