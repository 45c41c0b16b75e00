"""Sharding: packs the images of a source into WebDataset shards and writes their manifests.

All shards are laid out first and then written in parallel, independently of each other. A run that was killed
resumes: finished shards are kept as they are. The bytes depend only on the source's images, the seed and the
options, not on the source's layout, the engine, the workers, the parts, nor on where a run was stopped. A shard whose
images are all set aside is left out, and its number with it.
"""

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coma.errors import ComaError, UsageError, in_words
from coma.shards.files import folder_at, is_remote, make_folder, remove_temporaries
from coma.shards.sources.listing import SourceListing
from coma.shards.sources.parquet.spool import remove_spool, spool, spool_bytes
from coma.shards.tiles.spool import needs_spool, spool_tiles
from coma.shards.tiles.spool import spool_bytes as bytes_of_tiles
from coma.shards.write.duplicates import refuse_duplicates
from coma.shards.write.layout import ShardLayout, SplitLayout
from coma.shards.write.merge import SplitParts, finish
from coma.shards.write.one_shard import ShardJob
from coma.shards.write.options import ShardOptions
from coma.shards.write.pool import run_jobs
from coma.shards.write.resume import OutState, finished_counts, inspect_out, locked_run, parts_folder, spool_folder
from coma.shards.write.run import ShardRun, free_bytes, prepare_run, with_type
from coma.shards.write.source_times import changed_since, write_times
from coma.shards.write.summary import ShardProgress, ShardSummary, SplitSummary, TiledImages, complete
from coma.shards.write.worker import Job, Tally

log = logging.getLogger(__name__)


def shard(
    source: Path | str,
    out: Path | str,
    options: ShardOptions | None = None,
    progress: Callable[[ShardProgress], None] | None = None,
) -> ShardSummary:
    """Pack the images of `source` into shards under `out`, or resume a run that was stopped.

    Raises UsageError (no such source, an `out` that holds something else, options that contradict the source) and
    DataError (no images) before anything is written. Raises DataError if all images are set aside and ComaError if
    the disk is full later, and then the same call resumes the run.
    """
    source = folder_at(source)
    out = folder_at(out)
    begun_s = time.monotonic()
    run = prepare_run(source, out, options, progress)
    options, record = run.options, run.record
    if inspect_out(out, record) is OutState.COMPLETE:
        if changes := changed_since(out, run.listing):
            log.warning("%s", changes)
        else:
            log.info("%s is complete already: nothing to do", out)
            write_times(out, run.listing, overwrite=False)
        return complete(out, None, begun_s)
    _warn_of_space(run)
    try:
        with locked_run(out, record, options.part_name):
            is_begun = options.part is not None or _has_finished_shards(run)
            if is_begun and (changes := changed_since(out, run.listing)):
                log.warning("%s", changes)
            write_times(out, run.listing, overwrite=not is_begun)
            kept_shards = _write_shards(run)
            if options.part is None:
                _finish(run)
        if options.part is not None and not _finish_after_last_part(run):
            return _part_summary(run, kept_shards, time.monotonic() - begun_s)
    except KeyboardInterrupt:
        log.warning("stopped; the same command resumes from the shards that are done")
        raise
    except OSError as error:
        about = in_words(error)
        elsewhere = error.filename is not None and not about.startswith(str(out))
        what = about if elsewhere else f"cannot write to {out}: {about}"
        raise ComaError(f"{what}; finished shards are kept, and the same command resumes") from error
    return complete(out, kept_shards, begun_s)


def _has_finished_shards(run: ShardRun) -> bool:
    return any(finished_counts(run.out, layout) for split in run.splits for layout in split.shards)


def _warn_of_space(run: ShardRun) -> None:
    free, needed = free_bytes(run.out), sum(split.tar_bytes for split in run.splits) + bytes_of_tiles(run.listing)
    if free is not None and needed > free:
        log.warning(
            "the shards need about %.1f GB and %.1f GB are free: when the disk is full the run ends, and the same "
            "command resumes it once there is space",
            needed / 1e9,
            free / 1e9,
        )


def _write_shards(run: ShardRun) -> int:
    """Write the shards that are not finished yet; return how many were finished before."""
    done, total = Tally(), Tally()
    missing: list[tuple[SplitLayout, ShardLayout]] = []
    wanted = run.shards()
    for split in run.splits:
        make_folder(run.out / split.name)
    for split, layout in wanted:
        all_of_it = Tally(layout.stop - layout.start, run.source_bytes(split, layout))
        total += all_of_it
        counts = finished_counts(run.out, layout)
        if counts is None:
            missing.append((split, layout))
        else:
            done += all_of_it + Tally(set_aside=counts["set_aside"])
    kept_shards = shards_done = len(wanted) - len(missing)
    if kept_shards:
        log.info("resuming a run that was stopped: %d of %d shards are done", kept_shards, len(wanted))
    if not missing:
        return kept_shards
    names = {layout.name for _, layout in missing}
    with ExitStack() as stack:
        run = with_type(_make_readable(run, missing, stack))

        def report() -> None:
            images, source_bytes = (done.images, total.images), (done.source_bytes, total.source_bytes)
            shards = (shards_done, len(wanted))
            run.progress(ShardProgress("sharding", *images, *source_bytes, done.set_aside, *shards))

        report()
        try:
            jobs = run_jobs(_jobs(run, missing), run.options.workers, run.options.engine)
            with closing(jobs) as events:
                for event in events:
                    if isinstance(event, Tally):
                        done += event
                    else:
                        shards_done += 1
                    report()
        finally:  # a worker that was terminated may have left some
            for folder in (parts_folder(run.out), *(run.out / split.name for split in run.splits)):
                remove_temporaries(folder, names)
    return kept_shards


def _make_readable(run: ShardRun, missing: list[tuple[SplitLayout, ShardLayout]], stack: ExitStack) -> ShardRun:
    """Copy parquet rows to where they can be read one by one, and refuse duplicates if that is asked for."""
    listing, options = run.listing, run.options
    if listing.image_column is not None:
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
        wanted = None if options.dedupe else _images_of(run, missing)
        total = spool_bytes(listing, wanted)
        done = 0

        def report_spooled(count: int) -> None:
            nonlocal done
            done += count
            run.progress(ShardProgress("spooling", 0, len(listing), done, total))

        listing = spool(listing, folder, wanted, report_spooled)
    if needs_spool(listing):
        listing = _spool_tiles(run, missing, stack)
    if options.dedupe:
        hashed = Tally()
        total_bytes = sum(int(np.maximum(split.sizes, 0).sum()) for split in listing.splits)

        def report_hashed(tally: Tally) -> None:
            nonlocal hashed
            hashed += tally
            done = hashed.source_bytes
            run.progress(ShardProgress("hashing", hashed.images, len(listing), done, total_bytes))

        listing, duplicates = refuse_duplicates(listing, options.workers, options.engine, report_hashed)
        log.info("found %s exact duplicates", f"{duplicates:,}" if duplicates else "no")
    return replace(run, listing=listing)


def _spool_tiles(run: ShardRun, missing: list[tuple[SplitLayout, ShardLayout]], stack: ExitStack) -> SourceListing:
    """Cut the tiles of images from which they cannot be read one by one."""
    options = run.options
    folder = spool_folder(run.out, options.part_name)
    if is_remote(run.out):
        if options.engine == "ray":
            raise UsageError(
                f"--engine ray cannot cut tiles of such images into {run.out}: they lie on this machine meanwhile; "
                "shard into a folder that all machines see, then copy it there"
            )
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coma-spool-")))
    elif options.part is not None:
        stack.callback(remove_spool, folder)

    def report(done: Tally, total: Tally) -> None:
        run.progress(ShardProgress("cutting", done.images, total.images, done.source_bytes, total.source_bytes))

    wanted = _images_of(run, missing)
    return spool_tiles(run.listing, folder, wanted, options.pixels, options.workers, options.engine, report)


def _images_of(run: ShardRun, shards: list[tuple[SplitLayout, ShardLayout]]) -> dict[str, npt.NDArray[np.bool_]]:
    """Return, for each split of the source, which of its images go into these shards."""
    chosen = {split.name: np.zeros(len(split), bool) for split in run.listing.splits}
    for split, layout in shards:
        chosen[run.listing_of(split).name][split.order[layout.start : layout.stop]] = True
    return chosen


def _jobs(run: ShardRun, missing: list[tuple[SplitLayout, ShardLayout]]) -> Iterator[Job]:
    out = run.out.absolute()
    for split, layout in missing:
        listing = run.listing_of(split)
        yield ShardJob(
            layout=layout,
            root=run.listing.root.absolute(),
            images=tuple(listing.image(int(i)) for i in split.order[layout.start : layout.stop]),
            class_names=run.listing.class_names,
            mask_coding=None if listing.masks is None else run.listing.mask_coding,
            split_folder=out / split.name,
            parts_folder=parts_folder(out),
            pixels=run.options.pixels,
            tiles=run.options.tiles,
        )


def _finish(run: ShardRun) -> None:
    parts = []
    pixels = with_type(run).options.pixels
    for split in run.splits:
        listing = run.listing_of(split)
        names = None if listing.labels is None else run.listing.class_names
        masks = None if listing.masks is None else run.listing.mask_coding
        parts.append(SplitParts(split.name, split.shards, names, masks, pixels))
    finish(run.out, run.listing.root, parts, run.record, run.listing.class_words, run.listing.passed_over)


def _finish_after_last_part(run: ShardRun) -> bool:
    """Finish the data set if all other parts have ended; return whether it is complete."""
    if is_remote(run.out):
        return False  # a store has no locks: two parts could finish at once, and one remove the other's files
    if all(finished_counts(run.out, layout) for split in run.splits for layout in split.shards):
        with suppress(UsageError), locked_run(run.out, run.record):  # UsageError: another part is at work
            if inspect_out(run.out, run.record) is not OutState.COMPLETE:
                _finish(run)
    return inspect_out(run.out, run.record) is OutState.COMPLETE


def _part_summary(run: ShardRun, kept_shards: int, elapsed_s: float) -> ShardSummary:
    counts: Counter[str] = Counter()
    splits = []
    for split in run.splits:
        own = [finished_counts(run.out, layout) or {} for other, layout in run.shards() if other is split]
        of_split: Counter[str] = Counter()
        for shard_counts in own:
            of_split.update(shard_counts)
        counts.update(of_split)
        if own:
            labelled = run.listing_of(split).labels is not None
            splits.append(SplitSummary(split.name, of_split["kept"], len(own), of_split["tar_bytes"], labelled))
    return ShardSummary(
        out=run.out,
        found=counts["kept"] + counts["set_aside"],
        kept=counts["kept"],
        set_aside=counts["set_aside"],
        reasons={},
        converted={},
        passed_over={},
        classes=len(run.listing.class_names or ()),
        mask_classes=0 if run.listing.mask_coding is None else len(run.listing.mask_coding.classes or ()),
        splits=tuple(splits),
        kept_shards=kept_shards,
        elapsed_s=elapsed_s,
        part=run.options.part_name,
        tiled=TiledImages.of_record(run.record),
    )
