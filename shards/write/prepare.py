"""What goes where, before anything is written: splits, their shuffled order, their shards."""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from coma.errors import UsageError
from coma.shards.files import is_remote
from coma.shards.sources.find import SourceOptions, find_sources
from coma.shards.sources.model import Sources
from coma.shards.sources.parquet.spool import spool_bytes
from coma.shards.write.layout import ShardPlan, cut, shuffled
from coma.shards.write.options import ShardOptions
from coma.shards.write.state import State, finished, state_of
from coma.shards.write.summary import PlannedSplit, ShardPlanSummary, ShardProgress

log = logging.getLogger(__name__)

_MAX_SHARDS = 1_000_000  # six digits
_LAYOUT = 2  # raise it whenever the same source and options would give other bytes


@dataclass(frozen=True)
class Planned:
    """A split in its shuffled order, cut into shards; `order` indexes its sources."""

    name: str
    sources: int
    """Which of the source's splits it is taken from."""
    order: npt.NDArray[np.int64]
    shards: list[ShardPlan]
    bytes: int
    """Of all its tars, about."""


def default_out(source: Path) -> Path:
    """`<name of the source>-shards` in the current folder."""
    source = source.resolve()
    return Path(f"{(source.name if source.is_dir() else source.stem) or 'images'}-shards")


def plan_shards(
    source: Path,
    out: Path,
    options: ShardOptions | None = None,
    progress: Callable[[ShardProgress], None] | None = None,
) -> ShardPlanSummary:
    """Say what `shard` would write, and write nothing. Raises what `shard` raises before it begins."""
    options = options or ShardOptions()
    sources, planned, record = prepared(Path(source), out, options, progress or (lambda _: None))
    state = state_of(out, record)
    every = [plan for split in planned for plan in split.shards]
    splits = []
    for split in planned:
        labels = sources.splits[split.sources].labels
        classes = 0 if labels is None else len(np.unique(labels[split.order]))
        splits.append(PlannedSplit(split.name, len(split.order), len(split.shards), split.bytes, classes))
    return ShardPlanSummary(
        source=Path(source),
        layout=sources.layout,
        out=out,
        found=len(sources),
        refused=sum(len(split.refused) for split in sources.splits),
        splits=tuple(splits),
        spool_bytes=0 if sources.image_column is None else spool_bytes(sources, None),
        free_bytes=_free_bytes(out),
        done_shards=len(every)
        if state is State.COMPLETE
        else sum(finished(out, plan) is not None for plan in every)
        if state is State.UNFINISHED
        else 0,
    )


def prepared(
    source: Path, out: Path, options: ShardOptions, progress: Callable[[ShardProgress], None]
) -> tuple[Sources, list[Planned], dict[str, Any]]:
    """List the source and plan its shards; the third is the record of all that their bytes depend on.

    Raises UsageError and DataError as `writer.shard` says.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder that is new or empty")
    how = SourceOptions(options.layout, options.image_column, options.label_column, options.root)
    exclude = None if is_remote(out) else out
    sources = find_sources(source, how, exclude, lambda images: progress(ShardProgress(images=images)))
    return sources, _plan(source, sources, options), _record(sources, options)


def _plan(source: Path, sources: Sources, options: ShardOptions) -> list[Planned]:
    named: list[tuple[str, int, npt.NDArray[np.int64]]] = []
    for number, split in enumerate(sources.splits):
        order = shuffled(len(split), options.seed, split.name)
        held_out = 0
        if split.name == "train" and options.val_fraction:
            if any(other.name == "val" for other in sources.splits):
                raise UsageError(
                    f"--val-fraction {options.val_fraction}: {source} has validation images already"
                )
            held_out = round(options.val_fraction * len(order))
            if not 0 < held_out < len(order):
                raise UsageError(
                    f"--val-fraction {options.val_fraction} of {len(order)} images leaves a split empty"
                )
            log.info("holding out %s of them as split val", f"{held_out:,}")
        named.append((split.name, number, order[held_out:]))
        if held_out:
            named.append(("val", number, order[:held_out]))
    if options.val_fraction and not any(name == "val" for name, _, _ in named):
        raise UsageError(
            f"--val-fraction {options.val_fraction}: {source} has no training images to take from"
        )
    planned = []
    for name, number, order in named:
        sizes = sources.splits[number].sizes[order]
        shards, tar_bytes = cut(sizes, name, options.shard_bytes, options.resize_px)
        planned.append(Planned(name, number, order, shards, tar_bytes))
    most = max(len(split.shards) for split in planned)
    if most > _MAX_SHARDS:
        raise UsageError(f"--shard-bytes {options.shard_bytes} makes {most} shards, more than {_MAX_SHARDS}")
    return planned


def _record(sources: Sources, options: ShardOptions) -> dict[str, Any]:
    """All that the bytes depend on, but for the contents of the files."""
    digest = xxhash.xxh3_128(repr(sources.class_names).encode())
    for split in sources.splits:
        digest.update(f"\n{split.name}\n{len(split)}\n".encode())
        for path in split.paths:
            digest.update(os.fsencode(path) + b"\0")
        digest.update(split.sizes.tobytes())
        digest.update(split.labels.tobytes() if split.labels is not None else b"unlabelled")
    return {
        "layout": _LAYOUT,
        "sources": digest.hexdigest(),
        "images": len(sources),
        "seed": options.seed,
        "shard_bytes": options.shard_bytes,
        "resize_px": options.resize_px,
        "quality": options.quality if options.resize_px is not None else None,
        "val_fraction": options.val_fraction,
        "check": options.check,
        "max_pixels": options.max_pixels,
        "dedupe": options.dedupe,
    }


def _free_bytes(out: Path) -> int | None:
    if is_remote(out):
        return None
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def warn_of_space(out: Path, planned: list[Planned]) -> None:
    """Say so if the shards will not fit on the disk."""
    free, needed = _free_bytes(out), sum(split.bytes for split in planned)
    if free is not None and needed > free:
        log.warning(
            "the shards need about %.1f GB and %.1f GB are free: when the disk is full the run ends, and goes on "
            "once there is space",
            needed / 1e9,
            free / 1e9,
        )
