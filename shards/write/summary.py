"""Progress and summary of a run of `coma shard`."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coma.errors import DataError
from coma.shards.describe.card import data_card
from coma.shards.files import write_atomically
from coma.shards.manifest import CARD_NAME, read_info, read_manifest
from coma.shards.manifest.pixel_coding import PixelCoding
from coma.shards.sources.listing import counted_images
from coma.shards.write.resume import clear_work


@dataclass(frozen=True)
class ShardProgress:
    """Progress of a run. While the source is being listed only `images` grows and the totals are 0."""

    stage: str = "listing"
    """"listing", "hashing" (for duplicates), "spooling" (parquet rows), "cutting" (tiles) or "sharding"."""
    images: int = 0
    total_images: int = 0
    source_bytes: int = 0
    total_source_bytes: int = 0
    set_aside: int = 0
    shards: int = 0
    total_shards: int = 0


@dataclass(frozen=True)
class SplitSummary:
    """One split of a finished data set."""

    name: str
    images: int
    shards: int
    shard_bytes: int
    """Bytes of all its tars."""
    labelled: bool


@dataclass(frozen=True)
class TiledImages:
    """Images that tiles were cut from."""

    images: int
    set_aside: int
    """Further images, which are set aside whole and counted among the tiles."""

    @staticmethod
    def of_record(record: dict[str, Any]) -> "TiledImages | None":
        """Return what the record of a run says of them; None if images were not cut."""
        if record.get("tile") is None:
            return None
        return TiledImages(record["tiled_images"], record["images_set_aside"])

    def in_words(self, entries: int) -> str:
        """Say how many there are: "4,661 tiles of 3 images, and 1 image set aside whole"."""
        tiles = entries - self.set_aside
        words = f"{tiles:,} {'tile' if tiles == 1 else 'tiles'} of {counted_images(self.images)}"
        return f"{words}, and {counted_images(self.set_aside)} set aside whole" if self.set_aside else words


@dataclass(frozen=True)
class ShardSummary:
    """A finished data set, or a part of one: found = kept + set aside."""

    out: Path
    found: int
    kept: int
    set_aside: int
    reasons: dict[str, int]
    """Images set aside, by kind of reason."""
    converted: dict[str, int]
    """Images and masks kept with other bytes than the source's, by kind of reason."""
    passed_over: dict[str, int]
    """Files of the source that are no images, by kind."""
    classes: int
    """Number of class names, or where there are none of different labels; 0 without labels."""
    mask_classes: int
    """Number of classes of the masks; 0 without masks."""
    splits: tuple[SplitSummary, ...]
    kept_shards: int
    """Shards that an earlier run had finished."""
    elapsed_s: float
    part: str | None = None
    """Set if this is a part ("3/16") of a data set that is not complete yet."""
    pixels: PixelCoding | None = None
    """Channels and type of the samples, with the statistics of the first split; None: they are 8-bit RGB images."""

    tiled: "TiledImages | None" = None
    """The images that the samples were cut from; None: the samples are whole images."""

    @property
    def shards(self) -> int:
        """Tars of all splits."""
        return sum(split.shards for split in self.splits)

    @property
    def shard_bytes(self) -> int:
        """Bytes of all tars."""
        return sum(split.shard_bytes for split in self.splits)


def complete(out: Path, kept_shards: int | None, begun_s: float) -> ShardSummary:
    """Write the data card of a complete data set, remove the work folder, and summarise the run.

    The run began at `begun_s` (monotonic) and kept so many shards of an earlier one, all of them for None. Raises
    DataError if `_info.json` and the manifests disagree.
    """
    info: Any = read_info(out)
    if not (out / CARD_NAME).exists():
        write_atomically(out / CARD_NAME, data_card(out))
    clear_work(out)
    about = info["coma"]
    splits = []
    labels: set[int] = set()
    pixels = None
    for name, split in info["splits"].items():
        manifest = read_manifest(out, name)
        pixels = pixels or manifest.pixels
        if manifest.label is not None:
            labels.update(np.unique(manifest.label).tolist())
        splits.append(
            SplitSummary(
                name=name,
                images=len(manifest),
                shards=len(manifest.shards),
                shard_bytes=about["splits"][name]["bytes"],
                labelled=manifest.label is not None,
            )
        )
        if len(manifest) != split["num_samples"]:
            raise DataError(f"{out}/{name} has {len(manifest)} images, its _info.json {split['num_samples']}")
    kept, set_aside = sum(split.images for split in splits), sum(about["set_aside"].values())
    if about["found"] != kept + set_aside:
        raise DataError(f"{out} does not add up: {about['found']} found, {kept} kept, {set_aside} set aside")
    return ShardSummary(
        out=out,
        found=about["found"],
        kept=kept,
        set_aside=set_aside,
        reasons=about["set_aside"],
        converted=about.get("converted", {}),
        passed_over=about.get("passed_over", {}),
        classes=len(about["classes"] or labels),
        mask_classes=len((about.get("masks") or {}).get("classes") or ()),
        splits=tuple(splits),
        kept_shards=kept_shards if kept_shards is not None else sum(split.shards for split in splits),
        elapsed_s=time.monotonic() - begun_s,
        pixels=pixels,
        tiled=TiledImages.of_record(about["plan"]),
    )
