"""A source of images → WebDataset shards: planned first, written in parallel, each on its own, then indexed.

A run that was killed goes on where it stopped: shards that stand are kept as they are. The bytes of a file
depend on the source's images, the seed and the options alone: not on the layout they came in, the engine, the
workers, the parts, nor on where a run stopped. A shard whose images are all set aside is left out, and its
number with it.
"""

import logging
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from coma.errors import ComaError, DataError, UsageError
from coma.shards.duplicates import without_duplicates
from coma.shards.files import is_remote, make_folder, remove_temporaries, write_atomically
from coma.shards.jobs import Job, Tally
from coma.shards.manifest import CARD_NAME, QUARANTINE_NAME, read_info
from coma.shards.merge import Split, merge, write_info
from coma.shards.options import ShardOptions
from coma.shards.plan import ShardPlan, cut, shuffled
from coma.shards.pool import run_jobs
from coma.shards.sources.find import SourceOptions, find_sources
from coma.shards.sources.model import Sources, SplitSources
from coma.shards.state import (
    State,
    begun,
    clear_work,
    finished,
    parts_folder,
    spool_folder,
    state_of,
)
from coma.shards.summary import (
    PlannedSplit,
    ShardPlanSummary,
    ShardProgress,
    ShardSummary,
    SplitSummary,
    summary_of,
)
from coma.shards.worker import ShardJob

log = logging.getLogger(__name__)

_MAX_SHARDS = 1_000_000  # six digits
_LAYOUT = 2  # raise it whenever the same source and options would give other bytes


@dataclass(frozen=True)
class _Planned:
    """A split in its shuffled order, cut into shards; `order` indexes its sources."""

    name: str
    sources: int
    """Which of the source's splits it is taken from."""
    order: npt.NDArray[np.int64]
    shards: list[ShardPlan]
    bytes: int
    """Of all its tars, about."""


@dataclass(frozen=True)
class _Run:
    """One call of `shard`: what goes where."""

    sources: Sources
    planned: list[_Planned]
    out: Path
    options: ShardOptions
    progress: Callable[[ShardProgress], None]

    def split(self, planned: _Planned) -> SplitSources:
        return self.sources.splits[planned.sources]

    def source_bytes(self, planned: _Planned, plan: ShardPlan) -> int:
        return int(np.maximum(self.split(planned).sizes[planned.order[plan.start : plan.stop]], 0).sum())

    def shards(self) -> list[tuple[_Planned, ShardPlan]]:
        """Those of this part, of all splits."""
        every = [(planned, plan) for planned in self.planned for plan in planned.shards]
        if self.options.part is None:
            return every
        number, parts = self.options.part
        return every[number - 1 :: parts]


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
    sources, planned, record = _prepared(Path(source), out, options, progress or (lambda _: None))
    state = state_of(out, record)
    if sources.image_column is not None:
        from coma.shards.sources.spool import spool_bytes
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


def shard(
    source: Path,
    out: Path,
    options: ShardOptions | None = None,
    progress: Callable[[ShardProgress], None] | None = None,
) -> ShardSummary:
    """Pack the images of `source` into shards under `out`, or go on with a run that was stopped.

    Raises UsageError (a source that is none, an `out` that holds something else, options that contradict the
    source) and DataError (no images) before anything is written; DataError when no image is any good and
    ComaError when the disk is full only after, and then the same call goes on from what is done.
    """
    begun_s = time.monotonic()
    options, progress = options or ShardOptions(), progress or (lambda _: None)
    sources, planned, record = _prepared(Path(source), out, options, progress)
    if state_of(out, record) is State.COMPLETE:
        log.info("%s is complete already: nothing to do", out)
        return _completed(out, None, begun_s)
    _warn_of_space(out, planned)
    run = _Run(sources, planned, out, options, progress)
    try:
        with begun(out, record, options.part_name):
            kept_shards = _write(run)
            if options.part is None:
                _finish(run, record)
        if options.part is not None and not _last_part_finished(run, record):
            return _part_summary(run, kept_shards, time.monotonic() - begun_s)
    except KeyboardInterrupt:
        log.warning("stopped; the same command goes on from the shards that are done")
        raise
    except OSError as error:
        raise ComaError(f"cannot write to {out}: {error.strerror or error}; what is done is kept") from error
    return _completed(out, kept_shards, begun_s)


def _prepared(
    source: Path, out: Path, options: ShardOptions, progress: Callable[[ShardProgress], None]
) -> tuple[Sources, list[_Planned], dict[str, Any]]:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder that is new or empty")
    how = SourceOptions(options.layout, options.image_column, options.label_column, options.root)
    exclude = None if is_remote(out) else out
    sources = find_sources(source, how, exclude, lambda images: progress(ShardProgress(images=images)))
    return sources, _plan(source, sources, options), _record(sources, options)


def _plan(source: Path, sources: Sources, options: ShardOptions) -> list[_Planned]:
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
        planned.append(_Planned(name, number, order, shards, tar_bytes))
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


def _write(run: _Run) -> int:
    """Write the shards that are not there yet; return how many were."""
    images = source_bytes = set_aside = shards_done = 0
    missing: list[tuple[_Planned, ShardPlan]] = []
    wanted = run.shards()
    total_images = sum(plan.stop - plan.start for _, plan in wanted)
    total_source_bytes = sum(run.source_bytes(planned, plan) for planned, plan in wanted)
    for planned in run.planned:
        make_folder(run.out / planned.name)
    for planned, plan in wanted:
        counts = finished(run.out, plan)
        if counts is None:
            missing.append((planned, plan))
            continue
        shards_done += 1
        images += plan.stop - plan.start
        source_bytes += run.source_bytes(planned, plan)
        set_aside += counts["set_aside"]
    kept_shards = shards_done
    if kept_shards:
        log.info("going on with a run that was stopped: %d of %d shards are there", kept_shards, len(wanted))
    if not missing:
        return kept_shards
    names = {plan.name for _, plan in missing}
    with ExitStack() as stack:
        run = _readable(run, missing, stack)

        def tell() -> None:
            totals = (total_images, source_bytes, total_source_bytes, set_aside, shards_done, len(wanted))
            run.progress(ShardProgress("sharding", images, *totals))

        tell()
        try:
            jobs = run_jobs(_jobs(run, missing), run.options.workers, run.options.engine)
            with closing(jobs) as events:
                for event in events:
                    if isinstance(event, Tally):
                        images += event.images
                        source_bytes += event.source_bytes
                        set_aside += event.set_aside
                    else:
                        shards_done += 1
                    tell()
        finally:  # a worker that had to be stopped may have left some
            for folder in (parts_folder(run.out), *(run.out / planned.name for planned in run.planned)):
                remove_temporaries(folder, names)
    return kept_shards


def _readable(run: _Run, missing: list[tuple[_Planned, ShardPlan]], stack: ExitStack) -> _Run:
    """Make the images that are needed readable one by one, and refuse duplicates if that is asked for."""
    sources, options = run.sources, run.options
    if sources.image_column is not None:
        from coma.shards.sources.spool import remove_spool, spool, spool_bytes

        folder = spool_folder(run.out, options.part_name)
        if is_remote(run.out):
            if options.engine == "ray":
                raise UsageError(
                    f"--engine ray cannot read parquet into {run.out}: the images are first unpacked on this "
                    "machine alone; shard into a folder that all machines see, then copy it there"
                )
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coma-spool-")))
        elif options.part is not None:
            stack.callback(remove_spool, folder)
        wanted = None if options.dedupe else _wanted(run, missing)
        total = spool_bytes(sources, wanted)
        done = 0

        def spooled(count: int) -> None:
            nonlocal done
            done += count
            run.progress(ShardProgress("spooling", 0, len(sources), done, total))

        sources = spool(sources, folder, wanted, spooled)
    if options.dedupe:
        images = source_bytes = 0
        total_bytes = sum(int(np.maximum(split.sizes, 0).sum()) for split in sources.splits)

        def hashed(tally: Tally) -> None:
            nonlocal images, source_bytes
            images += tally.images
            source_bytes += tally.source_bytes
            run.progress(ShardProgress("hashing", images, len(sources), source_bytes, total_bytes))

        sources = without_duplicates(sources, options.workers, options.engine, hashed)
        duplicates = sum(len(split.refused) for split in sources.splits) - sum(
            len(split.refused) for split in run.sources.splits
        )
        log.info("found %s exact duplicates", f"{duplicates:,}" if duplicates else "no")
    return replace(run, sources=sources)


def _wanted(run: _Run, missing: list[tuple[_Planned, ShardPlan]]) -> dict[str, npt.NDArray[np.bool_]]:
    """Which images of each split of the source go into these shards."""
    wanted = {split.name: np.zeros(len(split), bool) for split in run.sources.splits}
    for planned, plan in missing:
        wanted[run.split(planned).name][planned.order[plan.start : plan.stop]] = True
    return wanted


def _jobs(run: _Run, missing: list[tuple[_Planned, ShardPlan]]) -> Iterator[Job]:
    out = run.out.absolute()
    for planned, plan in missing:
        split = run.split(planned)
        yield ShardJob(
            plan=plan,
            root=run.sources.root.absolute(),
            images=tuple(split.image(int(i)) for i in planned.order[plan.start : plan.stop]),
            class_names=run.sources.class_names,
            split_folder=out / planned.name,
            parts_folder=parts_folder(out),
            pixels=run.options.pixels,
        )


def _finish(run: _Run, record: dict[str, Any]) -> None:
    """Turn the shards' parts into the manifests, the quarantine and `_info.json`."""
    out, sources = run.out, run.sources
    splits = [
        Split(
            planned.name,
            planned.shards,
            sources.class_names if run.split(planned).labels is not None else None,
        )
        for planned in run.planned
    ]
    reasons, converted = merge(out, splits)
    if not is_remote(out):
        for split in splits:
            with suppress(OSError):
                (out / split.name).rmdir()  # only an empty one goes: of a split without a good image
                log.warning("none of the images of split %s is any good: the split is left out", split.name)
    if sum(reasons.values()) == len(sources):
        kinds = ", ".join(f"{count} {kind}" for kind, count in reasons.most_common(3))
        raise DataError(
            f"none of the {len(sources)} images of {sources.root} is any good ({kinds}); "
            f"{out / QUARANTINE_NAME} lists them"
        )
    write_info(out, splits, record, reasons, converted, sources.class_words)


def _last_part_finished(run: _Run, record: dict[str, Any]) -> bool:
    """Finish the data set if all other parts have ended; return whether it is complete."""
    if is_remote(run.out):
        return False  # no locks there: two parts could do so at a time, and one tidy up under the other
    every = [plan for planned in run.planned for plan in planned.shards]
    if all(finished(run.out, plan) for plan in every):
        with suppress(UsageError), begun(run.out, record):  # or another is at work, and will be the last
            if state_of(run.out, record) is not State.COMPLETE:
                _finish(run, record)
    return state_of(run.out, record) is State.COMPLETE


def _completed(out: Path, kept_shards: int | None, begun_s: float) -> ShardSummary:
    """Tidy up a complete data set, and sum it up."""
    info = read_info(out)
    try:
        from coma.shards.describe import data_card
    except ImportError:
        data_card = None
    if data_card is not None and not (out / CARD_NAME).exists():
        write_atomically(out / CARD_NAME, data_card(out))
    clear_work(out)
    return summary_of(out, info, kept_shards, time.monotonic() - begun_s)


def _part_summary(run: _Run, kept_shards: int, elapsed_s: float) -> ShardSummary:
    counts: Counter[str] = Counter()
    splits = []
    for planned in run.planned:
        own = [finished(run.out, plan) or {} for split, plan in run.shards() if split is planned]
        of_split: Counter[str] = Counter()
        for shard_counts in own:
            of_split.update(shard_counts)
        counts.update(of_split)
        if own:
            labelled = run.split(planned).labels is not None
            splits.append(
                SplitSummary(planned.name, of_split["kept"], len(own), of_split["tar_bytes"], labelled)
            )
    return ShardSummary(
        out=run.out,
        found=counts["kept"] + counts["set_aside"],
        kept=counts["kept"],
        set_aside=counts["set_aside"],
        reasons={},
        converted={},
        classes=len(run.sources.class_names or ()),
        splits=tuple(splits),
        kept_shards=kept_shards,
        elapsed_s=elapsed_s,
        part=run.options.part_name,
    )


def _free_bytes(out: Path) -> int | None:
    if is_remote(out):
        return None
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _warn_of_space(out: Path, planned: list[_Planned]) -> None:
    free, needed = _free_bytes(out), sum(split.bytes for split in planned)
    if free is not None and needed > free:
        log.warning(
            "the shards need about %.1f GB and %.1f GB are free: when the disk is full the run ends, and goes on "
            "once there is space",
            needed / 1e9,
            free / 1e9,
        )
