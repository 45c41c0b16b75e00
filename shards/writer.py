"""Source folder → WebDataset shards: planned first, written in parallel, each on its own, then indexed.

A run that was killed goes on where it stopped: shards that stand are kept as they are. The bytes of a file
depend on the source files, the seed and the options alone, not on the workers nor on where a run stopped.
A shard whose images are all set aside is left out, and its number with it.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from coma.errors import ComaError, DataError, UsageError
from coma.shards.files import remove_temporaries
from coma.shards.images import PixelOptions
from coma.shards.manifest import QUARANTINE_NAME, read_info, read_manifest
from coma.shards.merge import Split, merge, write_info
from coma.shards.plan import ShardPlan, cut, shuffled
from coma.shards.pool import write_shards
from coma.shards.sources.find import find_sources
from coma.shards.sources.model import Sources, SplitSources
from coma.shards.state import State, begun, clear_work, finished, parts_folder, state_of
from coma.shards.worker import ShardJob, Tally

log = logging.getLogger(__name__)

_MAX_SHARDS = 1_000_000  # six digits
_LAYOUT = 1  # raise it whenever the same source and options would give other bytes


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class ShardOptions:
    """How to shard. Raises UsageError for a value outside its limits."""

    seed: int = 0
    shard_bytes: int = 256 * 2**20
    """About how large a tar is to be."""
    resize_px: int | None = None
    """Re-encode as JPEG with the shorter side at most this long; None passes the bytes through untouched."""
    quality: int = 90
    """JPEG quality of re-encoded images, 1 to 100."""
    workers: int = field(default_factory=_cores)
    """Processes."""
    val_fraction: float = 0.0
    """The part of a source without validation images to hold out as split `val`."""

    def __post_init__(self) -> None:
        """Check the limits."""
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed {self.seed} is not between 0 and 2^63")
        if self.shard_bytes < 1:
            raise UsageError(f"--shard-bytes {self.shard_bytes} is too small; 256MiB is usual")
        if self.resize_px is not None and not 1 <= self.resize_px <= 65_500:
            raise UsageError(f"--resize {self.resize_px} is not between 1 and 65500 pixels")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"--quality {self.quality} is not between 1 and 100")
        if self.workers < 1:
            raise UsageError(f"--workers {self.workers} is less than 1")
        if not 0 <= self.val_fraction < 1:
            raise UsageError(f"--val-fraction {self.val_fraction} is not between 0 (none) and 1")


@dataclass(frozen=True)
class ShardProgress:
    """How far a run is. While the folder is being listed only `images` grows and the totals are 0."""

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
    """Of all its tars together."""
    labelled: bool


@dataclass(frozen=True)
class ShardSummary:
    """A finished data set: found = kept + set aside."""

    out: Path
    found: int
    kept: int
    set_aside: int
    reasons: dict[str, int]
    """Images set aside, by kind of reason."""
    classes: int
    splits: tuple[SplitSummary, ...]
    kept_shards: int
    """Shards of an earlier run that were found in place."""
    elapsed_s: float

    @property
    def shards(self) -> int:
        """Tars, of all splits."""
        return sum(split.shards for split in self.splits)

    @property
    def shard_bytes(self) -> int:
        """Bytes of all tars."""
        return sum(split.shard_bytes for split in self.splits)


@dataclass(frozen=True)
class _PlannedSplit:
    """A split in its shuffled order, cut into shards; `order` indexes its sources."""

    name: str
    sources: SplitSources
    order: "np.ndarray[Any, np.dtype[np.int64]]"
    shards: list[ShardPlan]

    def source_bytes(self, plan: ShardPlan) -> int:
        return int(np.maximum(self.sources.sizes[self.order[plan.start : plan.stop]], 0).sum())


def default_out(source: Path) -> Path:
    """`<name of the source folder>-shards` in the current folder."""
    return Path(f"{source.resolve().name or 'images'}-shards")


def shard(
    source: Path,
    out: Path,
    options: ShardOptions | None = None,
    progress: Callable[[ShardProgress], None] | None = None,
) -> ShardSummary:
    """Pack the images under `source` into shards under `out`, or go on with a run that was stopped.

    Raises UsageError (a source that is none, an `out` that holds something else, options that contradict the
    source) and DataError (no images) before anything is written; DataError when no image is any good and
    ComaError when the disk is full only after, and then the same call goes on from what is done.
    """
    begun_s = time.monotonic()
    source, out = Path(source), Path(out)
    options = options or ShardOptions()
    progress = progress or (lambda _: None)
    _check_place(out)
    sources = find_sources(source, None, out, lambda images: progress(ShardProgress(images=images)))
    planned = _plan(sources, options)
    record = _record(sources, options)
    state = state_of(out, record)
    if state is State.COMPLETE:
        log.info("%s is complete already: nothing to do", out)
        clear_work(out)
        return _summary(out, read_info(out), kept_shards=None, elapsed_s=time.monotonic() - begun_s)
    try:
        with begun(out, record):
            kept_shards = _write(sources, planned, out, options, progress)
            info = _finish(sources, planned, out, record)
        clear_work(out)
    except KeyboardInterrupt:
        log.warning("stopped; the same command goes on from the shards that are done")
        raise
    except OSError as error:
        raise ComaError(f"cannot write to {out}: {error.strerror or error}; what is done is kept") from error
    return _summary(out, info, kept_shards, time.monotonic() - begun_s)


def _check_place(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder that is new or empty")


def _plan(sources: Sources, options: ShardOptions) -> list[_PlannedSplit]:
    named: list[tuple[str, SplitSources, np.ndarray[Any, np.dtype[np.int64]]]] = []
    for split in sources.splits:
        order = shuffled(len(split), options.seed, split.name)
        held_out = 0
        if split.name == "train" and options.val_fraction:
            if any(other.name == "val" for other in sources.splits):
                raise UsageError(
                    f"--val-fraction {options.val_fraction}: {sources.root} has validation images already"
                )
            held_out = round(options.val_fraction * len(order))
            if not 0 < held_out < len(order):
                raise UsageError(
                    f"--val-fraction {options.val_fraction} of {len(order)} images leaves a split empty"
                )
            log.info("holding out %s of them as split val", f"{held_out:,}")
        named.append((split.name, split, order[held_out:]))
        if held_out:
            named.append(("val", split, order[:held_out]))
    if options.val_fraction and not any(name == "val" for name, _, _ in named):
        raise UsageError(
            f"--val-fraction {options.val_fraction}: {sources.root} has no training images to take from"
        )
    planned = [
        _PlannedSplit(
            name, split, order, cut(split.sizes[order], name, options.shard_bytes, options.resize_px)
        )
        for name, split, order in named
    ]
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
    }


def _write(
    sources: Sources,
    planned: list[_PlannedSplit],
    out: Path,
    options: ShardOptions,
    progress: Callable[[ShardProgress], None],
) -> int:
    """Write the shards that are not there yet; return how many were."""
    images = source_bytes = set_aside = shards_done = 0
    total_images = sum(len(split.order) for split in planned)
    total_source_bytes = sum(split.source_bytes(plan) for split in planned for plan in split.shards)
    missing: list[tuple[_PlannedSplit, ShardPlan]] = []
    for split in planned:
        (out / split.name).mkdir(exist_ok=True)
        for plan in split.shards:
            counts = finished(out, plan)
            if counts is None:
                missing.append((split, plan))
                continue
            shards_done += 1
            images += plan.stop - plan.start
            source_bytes += split.source_bytes(plan)
            set_aside += counts["set_aside"]
    kept_shards = shards_done
    total_shards = kept_shards + len(missing)
    if kept_shards:
        log.info("going on with a run that was stopped: %d of %d shards are there", kept_shards, total_shards)

    def tell() -> None:
        progress(
            ShardProgress(
                images, total_images, source_bytes, total_source_bytes, set_aside, shards_done, total_shards
            )
        )

    tell()
    try:
        with closing(write_shards(_jobs(sources, missing, out, options), options.workers)) as events:
            for event in events:
                if isinstance(event, Tally):
                    images += event.images
                    source_bytes += event.source_bytes
                    set_aside += event.set_aside
                else:
                    shards_done += 1
                tell()
    finally:  # a worker that had to be stopped may have left some
        for folder in (parts_folder(out), *(out / split.name for split in planned)):
            remove_temporaries(folder)
    return kept_shards


def _jobs(
    sources: Sources, missing: list[tuple[_PlannedSplit, ShardPlan]], out: Path, options: ShardOptions
) -> Iterator[ShardJob]:
    for split, plan in missing:
        yield ShardJob(
            plan=plan,
            root=sources.root.absolute(),
            images=tuple(split.sources.image(int(i)) for i in split.order[plan.start : plan.stop]),
            class_names=sources.class_names,
            split_folder=out.absolute() / split.name,
            parts_folder=parts_folder(out.absolute()),
            pixels=PixelOptions(options.resize_px, options.quality),
        )


def _finish(
    sources: Sources, planned: list[_PlannedSplit], out: Path, record: dict[str, Any]
) -> dict[str, Any]:
    splits = [
        Split(split.name, split.shards, sources.class_names if split.sources.labels is not None else None)
        for split in planned
    ]
    reasons = merge(out, splits)
    for split in splits:
        with suppress(OSError):
            (out / split.name).rmdir()  # only an empty one goes: of a split without a good image
            log.warning("none of the images of split %s is any good: the split is left out", split.name)
    if sum(reasons.values()) == len(sources):
        kinds = ", ".join(f"{count} {kind}" for kind, count in reasons.most_common(3))
        raise DataError(
            f"none of the {len(sources)} images in {sources.root} is any good ({kinds}); "
            f"{out / QUARANTINE_NAME} lists them"
        )
    return write_info(out, splits, record, reasons)


def _summary(out: Path, info: dict[str, Any], kept_shards: int | None, elapsed_s: float) -> ShardSummary:
    about = info["coma"]
    splits = []
    for name, split in info["splits"].items():
        manifest = read_manifest(out, name)
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
            raise DataError(
                f"{out}/{name} lists {len(manifest)} images, its _info.json {split['num_samples']}"
            )
    kept = sum(split.images for split in splits)
    return ShardSummary(
        out=out,
        found=about["found"],
        kept=kept,
        set_aside=sum(about["set_aside"].values()),
        reasons=about["set_aside"],
        classes=len(about["classes"] or ()),
        splits=tuple(splits),
        kept_shards=kept_shards if kept_shards is not None else sum(split.shards for split in splits),
        elapsed_s=elapsed_s,
    )
