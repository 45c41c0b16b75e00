"""A source of images → WebDataset shards: planned first, written in parallel, each on its own, then indexed.

A run that was killed goes on where it stopped: shards that stand are kept as they are. The bytes of a file
depend on the source's images, the seed and the options alone: not on the layout they came in, the engine, the
workers, the parts, nor on where a run stopped. A shard whose images are all set aside is left out, and its
number with it.
"""

import logging
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

from coma.errors import ComaError, DataError, UsageError
from coma.shards.files import is_remote, make_folder, remove_temporaries
from coma.shards.manifest import QUARANTINE_NAME
from coma.shards.sources.model import Sources, SplitSources
from coma.shards.sources.parquet.spool import remove_spool, spool, spool_bytes
from coma.shards.write.duplicates import without_duplicates
from coma.shards.write.jobs import Job, Tally
from coma.shards.write.layout import ShardPlan
from coma.shards.write.merge import Split, merge, write_info
from coma.shards.write.options import ShardOptions
from coma.shards.write.pool import run_jobs
from coma.shards.write.prepare import Planned, prepared, warn_of_space
from coma.shards.write.state import (
    State,
    begun,
    finished,
    parts_folder,
    spool_folder,
    state_of,
)
from coma.shards.write.summary import (
    ShardProgress,
    ShardSummary,
    SplitSummary,
    completed,
)
from coma.shards.write.worker import ShardJob

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Run:
    """One call of `shard`: what goes where."""

    sources: Sources
    planned: list[Planned]
    out: Path
    options: ShardOptions
    progress: Callable[[ShardProgress], None]

    def split(self, planned: Planned) -> SplitSources:
        return self.sources.splits[planned.sources]

    def source_bytes(self, planned: Planned, plan: ShardPlan) -> int:
        return int(np.maximum(self.split(planned).sizes[planned.order[plan.start : plan.stop]], 0).sum())

    def shards(self) -> list[tuple[Planned, ShardPlan]]:
        """Those of this part, of all splits."""
        every = [(planned, plan) for planned in self.planned for plan in planned.shards]
        if self.options.part is None:
            return every
        number, parts = self.options.part
        return every[number - 1 :: parts]


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
    sources, planned, record = prepared(Path(source), out, options, progress)
    if state_of(out, record) is State.COMPLETE:
        log.info("%s is complete already: nothing to do", out)
        return completed(out, None, begun_s)
    warn_of_space(out, planned)
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
    return completed(out, kept_shards, begun_s)


def _write(run: _Run) -> int:
    """Write the shards that are not there yet; return how many were."""
    images = source_bytes = set_aside = shards_done = 0
    missing: list[tuple[Planned, ShardPlan]] = []
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


def _readable(run: _Run, missing: list[tuple[Planned, ShardPlan]], stack: ExitStack) -> _Run:
    """Make the images that are needed readable one by one, and refuse duplicates if that is asked for."""
    sources, options = run.sources, run.options
    if sources.image_column is not None:
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


def _wanted(run: _Run, missing: list[tuple[Planned, ShardPlan]]) -> dict[str, npt.NDArray[np.bool_]]:
    """Which images of each split of the source go into these shards."""
    wanted = {split.name: np.zeros(len(split), bool) for split in run.sources.splits}
    for planned, plan in missing:
        wanted[run.split(planned).name][planned.order[plan.start : plan.stop]] = True
    return wanted


def _jobs(run: _Run, missing: list[tuple[Planned, ShardPlan]]) -> Iterator[Job]:
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
