"""Dry run of `coma shard`: what it would write, and how much space that takes."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coma.shards.sources.parquet.spool import spool_bytes
from coma.shards.tiles.spool import spool_bytes as bytes_of_tiles
from coma.shards.write.options import ShardOptions
from coma.shards.write.resume import OutState, finished_counts, inspect_out
from coma.shards.write.run import free_bytes, prepare_run
from coma.shards.write.source_times import changed_since
from coma.shards.write.summary import ShardProgress, TiledImages

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DryRunSplit:
    """One split as it would be written."""

    name: str
    images: int
    shards: int
    bytes: int
    """Estimated size of all its tars."""
    classes: int
    """0 for a split without labels."""


@dataclass(frozen=True)
class DryRun:
    """What a run would write."""

    source: Path
    layout: str
    out: Path
    found: int
    refused: int
    """Images that would be set aside because of what their listing says."""
    passed_over: dict[str, int]
    """Files of the source that are no images, by kind."""
    splits: tuple[DryRunSplit, ...]
    spool_bytes: int
    """Disk space that parquet rows take while the run is under way."""
    free_bytes: int | None
    """Free space on the disk of OUT; None in an object store."""
    done_shards: int
    """Shards that an earlier run has finished."""
    tiled: TiledImages | None = None
    """The images that the samples would be cut from; None: the samples are whole images."""


def dry_run(
    source: Path,
    out: Path,
    options: ShardOptions | None = None,
    progress: Callable[[ShardProgress], None] | None = None,
) -> DryRun:
    """Say what `shard` would write, and write nothing. Raises what `shard` raises before it writes."""
    run = prepare_run(source, out, options, progress)
    state = inspect_out(out, run.record)
    shards = [shard for split in run.splits for shard in split.shards]
    done_shards = len(shards) if state is OutState.COMPLETE else 0
    if state is OutState.UNFINISHED:
        done_shards = sum(finished_counts(out, shard) is not None for shard in shards)
    if done_shards and (changes := changed_since(out, run.listing)):
        log.warning("%s", changes)
    splits = []
    for split in run.splits:
        labels = run.listing_of(split).labels
        classes = 0 if labels is None else len(np.unique(labels[split.order]))
        splits.append(DryRunSplit(split.name, len(split.order), len(split.shards), split.tar_bytes, classes))
    return DryRun(
        source=run.source,
        layout=run.listing.layout,
        out=out,
        found=len(run.listing),
        refused=sum(len(split.refused) for split in run.listing.splits),
        passed_over=dict(sorted(run.listing.passed_over.counts().items())),
        splits=tuple(splits),
        spool_bytes=bytes_of_tiles(run.listing) if run.listing.image_column is None else spool_bytes(run.listing, None),
        free_bytes=free_bytes(out),
        done_shards=done_shards,
        tiled=TiledImages.of_record(run.record),
    )
