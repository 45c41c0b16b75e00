"""Give WebDataset tars that somebody else wrote a manifest, without rewriting them.

OUT becomes a data set like any of ours, but its shards are links to the tars where they lie. A tar is one job; what
was found in it waits as a part, as `coma.shards.write.worker` has them, so that a run that was stopped goes on.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from coma.errors import ComaError, DataError, UsageError
from coma.shards.files import make_folder
from coma.shards.index.job import Found, IndexedTar, IndexJob, drop_labels, found_in
from coma.shards.manifest import INFO_NAME, MANIFEST_NAME, QUARANTINE_NAME, read_info
from coma.shards.sources.model import counted, printable
from coma.shards.sources.tree import files_below
from coma.shards.sources.webdataset import NO_IMAGE, ClassNames, is_labelled, split_of
from coma.shards.write.jobs import Tally
from coma.shards.write.layout import ShardPlan
from coma.shards.write.merge import Split, merge, write_info
from coma.shards.write.pool import run_jobs
from coma.shards.write.state import begun, state_of
from coma.shards.write.summary import ShardSummary, completed

log = logging.getLogger(__name__)

_REPORT_EVERY_S = 0.1
_ROWS = 8192  # held as Python objects at a time


@dataclass(frozen=True)
class IndexProgress:
    """How far a run is."""

    images: int
    set_aside: int
    tars: int
    total_tars: int
    tar_bytes: int
    """Of the tars that are done, and of the images in the others so far."""
    total_tar_bytes: int


def default_out(source: Path) -> Path:
    """`<name of the source>-index` in the current folder."""
    source = source.resolve()
    return Path(f"{(source.name if source.is_dir() else source.stem) or 'tars'}-index")


def index(
    source: Path,
    out: Path,
    decode: bool = True,
    workers: int | None = None,
    progress: Callable[[IndexProgress], None] | None = None,
) -> ShardSummary:
    """Index the tars of `source`, a folder or one tar, as the data set `out`, or go on with a run that was stopped.

    Every image is hashed and checked; with `decode`, decoded in full. A bad one is listed in the quarantine and not
    in the manifest, but it stays in its tar.

    Raises UsageError (no tars, names that clash, an `out` that holds something else) before anything is written;
    DataError that names all damaged tars, or if no image is any good; ComaError when the disk is full.
    """
    begun_s = time.monotonic()
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers} is less than 1")
    root, tars = _tars(Path(source), Path(out))
    names = repr([(tar.plan.split, tar.path) for tar in tars])
    record = {"seed": None, "index": xxhash.xxh3_128_hexdigest(names.encode()), "decode": decode}
    state = xxhash.xxh3_128_hexdigest(repr([(tar.size, tar.mtime_ns) for tar in tars]).encode())
    if _is_complete(out, root, tars, record, state):
        log.info("%s is complete already: nothing to do", out)
        return completed(out, None, begun_s)
    jobs = [IndexJob(root, tar, out.absolute(), decode) for tar in tars]
    try:
        with begun(out, record):
            for split in {tar.plan.split for tar in tars}:
                make_folder(out / split)
            kept_tars = _run(jobs, workers, progress or (lambda _: None))
            _finish(source, out, root, jobs, record | {"state": state})
    except KeyboardInterrupt:
        log.warning("stopped; the same command goes on from the tars that are done")
        raise
    except OSError as error:
        raise ComaError(f"cannot write to {out}: {error.strerror or error}; what is done is kept") from error
    return completed(out, kept_tars, begun_s)


def _tars(source: Path, out: Path) -> tuple[Path, list[IndexedTar]]:
    """Find the tars: (the folder that their paths start from, the tars by split and name)."""
    if not source.exists():
        raise UsageError(f"no such file or folder: {source}")
    if (source / INFO_NAME).is_file() and any(source.glob(f"*/{MANIFEST_NAME}")):
        raise UsageError(
            f"{source} is a sharded data set already, with its manifests; see: coma inspect {source}"
        )
    root = (source if source.is_dir() else source.parent).absolute()
    paths = files_below(root, ".tar", out) if source.is_dir() else [source.name]
    if not paths:
        raise UsageError(f"no .tar files in {source}")
    by_place: dict[tuple[str, str], str] = {}
    for path in paths:
        place = (split_of(path), path.rsplit("/", 1)[-1])
        if printable(path) != path:
            raise UsageError(f"{printable(str(root / path))} has a name that is no UTF-8; rename it")
        if place in by_place:
            raise UsageError(
                f"{by_place[place]} and {path} in {root} would both be {'/'.join(place)}; rename one, or index the "
                "folders one by one"
            )
        by_place[place] = path
    tars = []
    numbers: Counter[str] = Counter()
    for (split, _), path in sorted(by_place.items()):
        status = (root / path).stat()
        tars.append(
            IndexedTar(path, status.st_size, status.st_mtime_ns, ShardPlan(split, numbers[split], 0, 0))
        )
        numbers[split] += 1
    return root, tars


def _is_complete(out: Path, root: Path, tars: list[IndexedTar], record: dict[str, Any], state: str) -> bool:
    """Whether OUT is this very index. Raises UsageError if it holds anything but it, whole or in part."""
    if not (out / INFO_NAME).is_file():
        state_of(out, record)
        return False
    plan: Any = None
    with suppress(DataError):
        about: Any = read_info(out).get("coma")
        plan = about.get("plan") if isinstance(about, dict) else None
    same = isinstance(plan, dict) and all(plan.get(name) == record[name] for name in record)
    if not same:
        raise UsageError(
            f"{out} is not empty: it holds a data set, and not an index of these tars; name another OUT"
        )
    links = {tar: out / tar.plan.split / tar.shard for tar in tars}
    moved = any(link.is_symlink() and not _is_link_to(link, root / tar.path) for tar, link in links.items())
    if moved or plan.get("state") != state:
        raise UsageError(
            f"{out} is an index of these tars as they were; they have changed since: remove it first"
        )
    return True


def _run(jobs: list[IndexJob], workers: int | None, progress: Callable[[IndexProgress], None]) -> int:
    """Index the tars that are not yet indexed; return how many were."""
    images = set_aside = tars = tar_bytes = 0
    total_bytes = sum(job.tar.size for job in jobs)
    missing = []
    for job in jobs:
        found = found_in(job)
        if found is None:
            missing.append(job)
            continue
        images += found.kept + found.set_aside
        set_aside += found.set_aside
        tar_bytes += job.tar.size
        tars += 1
    kept_tars = tars
    if kept_tars:
        log.info("going on with a run that was stopped: %d of %d tars are indexed", kept_tars, len(jobs))
    problems: list[str] = []
    damaged = False
    tell = partial(IndexProgress, total_tars=len(jobs), total_tar_bytes=total_bytes)
    progress(tell(images, set_aside, tars, tar_bytes=tar_bytes))
    with closing(run_jobs(missing, workers)) as events:
        for event in events:
            if isinstance(event, Tally):
                images += event.images
                set_aside += event.set_aside
                tar_bytes += event.source_bytes
            else:
                done, problem = event
                assert isinstance(done, IndexJob)
                tars += 1
                if problem is not None:
                    problems.append(problem[0])
                    damaged = damaged or problem[1]
                else:
                    tar_bytes += done.tar.size - _require_found(done).image_bytes
            progress(tell(images, set_aside, tars, tar_bytes=tar_bytes))
    if problems:
        raise DataError(
            f"{len(problems)} {'tar' if len(problems) == 1 else 'tars'} cannot be read: {', '.join(sorted(problems))}; "
            f"{'download or copy what is damaged again, then ' if damaged else 'once that is done '}"
            "the same command goes on from the tars that are indexed"
        )
    return kept_tars


def _finish(source: Path, out: Path, root: Path, jobs: list[IndexJob], record: dict[str, Any]) -> None:
    """Put parts and links together; the data set's `_info.json` is written last."""
    found = {job: _require_found(job) for job in jobs}
    for job in jobs:
        if not found[job].ended:
            log.warning("%s does not end as tars do: it may be cut short", root / job.tar.path)
    images = sum(each.kept + each.set_aside for each in found.values())
    without_image = sum(each.without_image for each in found.values())
    names = ClassNames()
    for each in found.values():
        for label, name in each.names.items():
            names.add(label, name)
    splits = []
    for name in sorted({job.tar.plan.split for job in jobs}, key=lambda name: (name != "train", name)):
        of_split = [job for job in jobs if job.tar.plan.split == name]
        kept = sum(found[job].kept for job in of_split)
        labelled = is_labelled(name, kept, sum(found[job].without_label for job in of_split))
        for job in of_split:
            if not labelled and found[job].without_label < found[job].kept:
                drop_labels(job)
            link = out / name / job.tar.shard
            if found[job].kept:
                _link(link, root / job.tar.path)
            else:
                link.unlink(missing_ok=True)
                log.warning("no image in %s is any good: it is left out", root / job.tar.path)
        splits.append(Split(name, [job.tar.plan for job in of_split], names.found if labelled else None))
    if without_image:
        log.info("passed over %s", counted(Counter({NO_IMAGE: without_image})))
    reasons, converted = merge(out, splits)
    for split in splits:
        with suppress(OSError):
            (out / split.name).rmdir()  # only an empty one goes: of a split without a good image
            log.warning("none of the images of split %s is any good: the split is left out", split.name)
    if sum(reasons.values()) == images:
        kinds = ", ".join(f"{count} {kind}" for kind, count in reasons.most_common(3))
        raise DataError(
            f"none of the {images:,} images in the tars of {source} is any good ({kinds}); {out / QUARANTINE_NAME} "
            "lists them"
            if images
            else f"no sample in the tars of {source} has an image"
        )
    write_info(out, splits, record | {"images": images}, reasons, converted, None)


def _require_found(job: IndexJob) -> Found:
    found = found_in(job)
    if found is None:
        raise ComaError(f"what was found in {job.tar.path} is gone; the same command finds it again")
    return found


def _link(link: Path, tar: Path) -> None:
    """Make `link` a relative link to a tar; the way is counted from where the folder really is."""
    target = os.path.relpath(tar.parent.resolve() / tar.name, link.parent.resolve())
    temporary = link.with_name(f".{link.name}.{os.getpid()}.coma-tmp")
    temporary.symlink_to(target)
    temporary.replace(link)


def _is_link_to(link: Path, tar: Path) -> bool:
    try:
        return link.samefile(tar)
    except OSError:
        return False
