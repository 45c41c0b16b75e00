"""Manifests for WebDataset tars that somebody else wrote, without rewriting them.

OUT becomes a data set like those of `coma shard`, but its shards are links to the tars. Each tar is one job, which
writes a part file as in `coma.shards.write.one_shard`, so that a run that was stopped resumes.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from coma.errors import ComaError, DataError, UsageError, in_words, shell_command
from coma.shards.files import make_folder
from coma.shards.index.one_tar import IndexJob, ListedTar, TarCounts, read_counts, relabel
from coma.shards.index.options import IndexOptions
from coma.shards.manifest import INFO_NAME, MANIFEST_NAME, read_info
from coma.shards.sources.folders import files_below
from coma.shards.sources.listing import PassedOver, clamped, printable, train_first, warn_of_packed
from coma.shards.sources.splits import split_of_source
from coma.shards.sources.webdataset import ClassNames, is_labelled, split_of_sample
from coma.shards.write.layout import ShardLayout
from coma.shards.write.merge import SplitParts, finish
from coma.shards.write.pool import run_jobs
from coma.shards.write.resume import inspect_out, locked_run
from coma.shards.write.summary import ShardSummary, complete
from coma.shards.write.worker import Tally

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexProgress:
    """Progress of a run."""

    images: int
    set_aside: int
    tars: int
    total_tars: int
    tar_bytes: int
    """Bytes of the tars that are done, and of the images read so far in the others."""
    total_tar_bytes: int


def default_out(source: Path) -> Path:
    """Return `<name of the source>-index` in the current folder."""
    source = source.resolve()
    return Path(f"{(source.name if source.is_dir() else source.stem) or 'tars'}-index")


def run_command(options: IndexOptions, progress: Callable[[IndexProgress], None] | None = None) -> ShardSummary:
    """Index tars as `coma index` does, given its options; see `index`."""
    return index(options.source, options.out or default_out(options.source), workers=options.workers, progress=progress)


def index(
    source: Path,
    out: Path,
    decode: bool = True,
    workers: int | None = None,
    progress: Callable[[IndexProgress], None] | None = None,
) -> ShardSummary:
    """Index the tars of `source`, a folder or one tar, as the data set `out`, or resume a run that was stopped.

    Every image is hashed and checked; with `decode`, it is decoded in full. A bad image is listed in the quarantine
    instead of the manifest, but stays in its tar.

    Raises UsageError (no tars, names that clash, an `out` that holds something else) before anything is written;
    DataError that names all damaged tars, or if all images are set aside; ComaError if the disk is full.
    """
    begun_s = time.monotonic()
    root, tars, passed_over = _list_tars(Path(source), Path(out))
    names = repr([(tar.layout.split, tar.path) for tar in tars])
    record = {"seed": None, "index": xxhash.xxh3_128_hexdigest(names.encode()), "decode": decode}
    state = xxhash.xxh3_128_hexdigest(repr([(tar.size, tar.mtime_ns) for tar in tars]).encode())
    if _is_complete(out, root, tars, record, state):
        log.info("%s is complete already: nothing to do", out)
        return complete(out, None, begun_s)
    jobs = [IndexJob(root, tar, out.absolute(), decode) for tar in tars]
    try:
        with locked_run(out, record):
            for split in {tar.layout.split for tar in tars}:
                make_folder(out / split)
            kept_tars = _index_tars(jobs, workers, progress or (lambda _: None))
            _finish(source, out, root, jobs, record | {"state": state}, passed_over)
    except KeyboardInterrupt:
        log.warning("stopped; the same command resumes from the tars that are done")
        raise
    except OSError as error:
        raise ComaError(f"cannot write to {out}: {in_words(error)}; what is done is kept") from error
    return complete(out, kept_tars, begun_s)


def _list_tars(source: Path, out: Path) -> tuple[Path, list[ListedTar], PassedOver]:
    """Return the folder that the paths of the tars are relative to, the tars sorted by split and name, and all else."""
    if not source.exists():
        raise UsageError(f"no such file or folder: {source}")
    if (source / INFO_NAME).is_file() and any(source.glob(f"*/{MANIFEST_NAME}")):
        raise UsageError(
            f"{source} is a data set already, with manifests; see: {shell_command('coma', 'inspect', source)}"
        )
    root = (source if source.is_dir() else source.parent).absolute()
    paths, others = files_below(root, ".tar", out) if source.is_dir() else ([source.name], PassedOver())
    if not paths:
        raise UsageError(f"no .tar files in {source}")
    by_place: dict[tuple[str, str], str] = {}
    for path in paths:
        place = (split_of_sample(path) or split_of_source(source.resolve().name), path.rsplit("/", 1)[-1])
        if printable(path) != path:
            raise UsageError(f"{printable(str(root / path))} has a name that is not UTF-8; rename it")
        if place in by_place:
            raise UsageError(
                f"{by_place[place]} and {path} in {root} would both be {'/'.join(place)}; rename one, or index the "
                "folders one by one"
            )
        by_place[place] = path
    tars = []
    numbers: Counter[str] = Counter()
    for (split, _), path in sorted(by_place.items()):
        status, layout = (root / path).stat(), ShardLayout(split, numbers[split], 0, 0)
        tars.append(ListedTar(path, status.st_size, clamped(status.st_mtime_ns), layout))
        numbers[split] += 1
    warn_of_packed(others)
    return root, tars, others


def _is_complete(out: Path, root: Path, tars: list[ListedTar], record: dict[str, Any], state: str) -> bool:
    """Whether OUT is a complete index of these tars. Raises UsageError if it holds anything else but a part of it."""
    if not (out / INFO_NAME).is_file():
        inspect_out(out, record)
        return False
    plan: Any = None
    with suppress(DataError):
        about: Any = read_info(out).get("coma")
        plan = about.get("plan") if isinstance(about, dict) else None
    same = isinstance(plan, dict) and all(plan.get(name) == record[name] for name in record)
    if not same:
        raise UsageError(f"{out} holds a data set that is not an index of these tars; name another OUT")
    links = {tar: out / tar.layout.split / tar.shard for tar in tars}
    moved = any(link.is_symlink() and not _is_link_to(link, root / tar.path) for tar, link in links.items())
    if moved or plan.get("state") != state:
        raise UsageError(f"{out} indexes these tars, which have changed since; remove it, or name another OUT")
    return True


def _index_tars(jobs: list[IndexJob], workers: int | None, progress: Callable[[IndexProgress], None]) -> int:
    """Index the tars that are not indexed yet; return how many were indexed before."""
    done, total_bytes = Tally(), sum(job.tar.size for job in jobs)
    missing = []
    for job in jobs:
        counts = read_counts(job)
        if counts is None:
            missing.append(job)
        else:
            done += Tally(counts.kept + counts.set_aside, job.tar.size, counts.set_aside)
    kept_tars = tars = len(jobs) - len(missing)
    if kept_tars:
        log.info("resuming a run that was stopped: %d of %d tars are indexed", kept_tars, len(jobs))
    problems: list[str] = []
    damaged = False

    def report() -> None:
        progress(IndexProgress(done.images, done.set_aside, tars, len(jobs), done.source_bytes, total_bytes))

    report()
    with closing(run_jobs(missing, workers)) as events:
        for event in events:
            if isinstance(event, Tally):
                done += event
            else:
                indexed, problem = event
                assert isinstance(indexed, IndexJob)
                tars += 1
                if problem is not None:
                    problems.append(problem[0])
                    damaged = damaged or problem[1]
                else:
                    done += Tally(source_bytes=indexed.tar.size - _require_counts(indexed).image_bytes)
            report()
    if problems:
        raise DataError(
            f"{len(problems)} {'tar' if len(problems) == 1 else 'tars'} cannot be read: {', '.join(sorted(problems))}; "
            f"{'download or copy what is damaged again, then ' if damaged else 'once that is done '}"
            "the same command resumes from the tars that are indexed"
        )
    return kept_tars


def _finish(
    source: Path, out: Path, root: Path, jobs: list[IndexJob], record: dict[str, Any], passed_over: PassedOver
) -> None:
    """Link the tars and merge their part files into a data set."""
    counts = {job: _require_counts(job) for job in jobs}
    images = sum(each.kept + each.set_aside for each in counts.values())
    if not images:
        raise DataError(f"no sample in the tars of {source} has an image")
    held_out = next(((job, each.held_out) for job, each in counts.items() if each.held_out is not None), None)
    if held_out is not None:
        raise UsageError(
            f"{held_out[0].tar.path} has samples that are not to be trained on by their names, such as {held_out[1]}, "
            f"and a tar is indexed as one split; {shell_command('coma', 'shard', source)} sorts them"
        )
    words = sorted({word for each in counts.values() for word in each.words}, key=os.fsencode)
    if words and any(each.names for each in counts.values()):
        raise DataError(f"some labels in the tars of {source} are numbers and others words, such as {words[0]}")
    number_of = {word: i for i, word in enumerate(words)}
    names = ClassNames()
    for job in jobs:
        if not counts[job].ended:
            log.warning("%s does not end like a tar: it may be cut short", root / job.tar.path)
        for label, class_name in counts[job].names.items():
            names.add(label, class_name)
    splits = []
    for name in train_first({job.tar.layout.split for job in jobs}):
        of_split = [job for job in jobs if job.tar.layout.split == name]
        kept = sum(counts[job].kept for job in of_split)
        labelled = is_labelled(name, kept, sum(counts[job].without_label for job in of_split))
        for job in of_split:
            if not labelled and counts[job].without_label < counts[job].kept:
                relabel(job, None)
            elif counts[job].words:
                relabel(job, number_of)
            link = out / name / job.tar.shard
            if counts[job].kept:
                _link(link, root / job.tar.path)
            else:
                link.unlink(missing_ok=True)
                log.warning("all images in %s were set aside: it is left out", root / job.tar.path)
        class_names = (tuple(words) or names.complete()) if labelled else None
        splits.append(SplitParts(name, [job.tar.layout for job in of_split], class_names))
    finish(out, source, splits, record | {"images": images}, passed_over=passed_over)


def _require_counts(job: IndexJob) -> TarCounts:
    counts = read_counts(job)
    if counts is None:
        raise ComaError(f"the part file {job.part} is gone; run the same command again to index its tar anew")
    return counts


def _link(link: Path, tar: Path) -> None:
    """Make `link` a relative link to a tar, which starts from the real location of the link's folder."""
    target = os.path.relpath(tar.parent.resolve() / tar.name, link.parent.resolve())
    temporary = link.with_name(f".{link.name}.{os.getpid()}.coma-tmp")
    temporary.symlink_to(target)
    temporary.replace(link)


def _is_link_to(link: Path, tar: Path) -> bool:
    try:
        return link.samefile(tar)
    except OSError:
        return False
