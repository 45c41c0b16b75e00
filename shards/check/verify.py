"""Verification of a data set: tars against manifests, and manifests against `_info.json` and the quarantine."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from coma.shards.check.one_shard import Decode, Problem, check_shard
from coma.shards.files import folder_at, store_errors_as_oserror
from coma.shards.images.prepare import MAX_PIXELS, check_image
from coma.shards.images.prepare_array import check_array
from coma.shards.manifest import INFO_NAME, MANIFEST_NAME, QUARANTINE_NAME, Manifest, load_manifests, read_info
from coma.shards.manifest.quarantine import PASSED_OVER_NAME, count_reasons

_OWN_PREFIX = "coma-"
_REPORT_EVERY_S = 0.2


@dataclass(frozen=True)
class VerifyReport:
    """Counts of what was checked, and the problems that were found."""

    samples: int
    shards: int
    image_bytes: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class VerifyProgress:
    """Progress of a verification."""

    shards: int
    total_shards: int
    image_bytes: int
    total_image_bytes: int
    problems: int


def verify(
    data: Path | str,
    decode: bool = False,
    workers: int | None = None,
    progress: Callable[[VerifyProgress], None] | None = None,
) -> VerifyReport:
    """Read a data set, or one split's folder of it, from end to end and compare it with its manifests.

    Every tar is read from its first byte to its last, in `workers` threads (None is one for each core); with
    `decode` every image is decoded as well. Problems are reported, not raised: a missing, changed or truncated
    shard, a label or description that disagrees, a sample or a tar that no manifest lists, an .idx, `_info.json` or
    quarantine that does not fit. Raises DataError if there is no data set or no readable manifest.
    """
    data = folder_at(data)
    data = folder_at(data)
    manifests = load_manifests(data)
    root = manifests[0].folder.parent
    plan = _dict(_dict(read_info(root).get("coma")).get("plan")) if (root / INFO_NAME).is_file() else {}
    max_pixels = max(plan.get("max_pixels") or MAX_PIXELS, (plan.get("tile") or 0) ** 2)  # of a tile it is no limit
    problems = [problem for manifest in manifests for problem in _unlisted(manifest)]
    if not (data / MANIFEST_NAME).is_file():
        problems += [*_info_problems(data, manifests), *_quarantine_problems(data)]
        problems += _stray_tars(data, manifests)
    problems += _check_shards(
        manifests,
        "index" in plan,
        [_decoder(manifest, max_pixels) if decode else None for manifest in manifests],
        workers or len(os.sched_getaffinity(0)),
        progress,
        len(problems),
    )
    return VerifyReport(
        samples=sum(map(len, manifests)),
        shards=sum(len(manifest.shards) for manifest in manifests),
        image_bytes=sum(int(manifest.size.sum()) for manifest in manifests),
        problems=tuple(sorted(problems, key=lambda problem: (problem.split, problem.shard, problem.key))),
    )


def _decoder(manifest: Manifest, max_pixels: int) -> Decode:
    """Return what decodes a sample of a split, and says what its header has."""
    if manifest.pixels is None:
        return partial(check_image, max_pixels=max_pixels)
    return partial(check_array, channels=manifest.pixels.channels, dtype=manifest.pixels.dtype)


def _check_shards(
    manifests: list[Manifest],
    indexed: bool,
    decoders: list[Decode | None],
    workers: int,
    progress: Callable[[VerifyProgress], None] | None,
    known_problems: int,
) -> list[Problem]:
    """Check all shards in threads; `decoders` are those of the manifests.

    `known_problems` are added to the count in the progress.
    """
    problems: list[Problem] = []
    jobs = [
        (manifest, decode, shard)
        for manifest, decode in zip(manifests, decoders, strict=True)
        for shard in range(len(manifest.shards))
    ]
    sizes = [int(size) for manifest in manifests for size in _shard_image_bytes(manifest)]
    checked = [0] * len(jobs)  # bytes of images; each thread writes its own entry
    stopped = threading.Event()

    def check(number: int) -> list[Problem]:
        def advance(image_bytes: int) -> None:
            if stopped.is_set():
                raise _Stopped
            checked[number] += image_bytes

        manifest, decode, shard = jobs[number]
        foreign = indexed or not manifest.shards[shard].startswith(_OWN_PREFIX)
        return check_shard(manifest, shard, foreign, decode, advance)

    pool = ThreadPoolExecutor(workers)
    try:
        numbers = {pool.submit(check, number): number for number in range(len(jobs))}
        running = set(numbers)
        while running:
            done, running = wait(running, _REPORT_EVERY_S, FIRST_COMPLETED)
            for future in done:
                problems += future.result()
                checked[numbers[future]] = sizes[numbers[future]]
            if progress is not None:
                shards, count = len(jobs) - len(running), known_problems + len(problems)
                progress(VerifyProgress(shards, len(jobs), sum(checked), sum(sizes), count))
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
    return problems


class _Stopped(Exception):
    """Ends the check in a thread after the verification was interrupted."""


def _shard_image_bytes(manifest: Manifest) -> list[int]:
    ends = np.cumsum(manifest.shard_lengths)
    return [int(manifest.size[start:end].sum()) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _unlisted(manifest: Manifest) -> Iterator[Problem]:
    for path in _tars(manifest.folder):
        if path.name not in manifest.shards:
            yield Problem(manifest.split, path.name, "", "not in the manifest: stock readers would read it")


def _stray_tars(data: Path, manifests: list[Manifest]) -> Iterator[Problem]:
    """Yield a problem for each tar outside the splits."""
    splits = {manifest.split for manifest in manifests}
    for path in _tars(data):
        yield Problem("", path.name, "", "not in any split's folder: stock readers would read it")
    with store_errors_as_oserror(data):
        try:
            folders = sorted((child for child in data.iterdir() if child.is_dir()), key=lambda at: at.name)
        except NotADirectoryError:  # a web server that lists nothing
            return
    for folder in folders:
        if folder.name not in splits and not folder.name.startswith("."):
            for path in _tars(folder):
                yield Problem(folder.name, path.name, "", f"in a folder that is no split of {INFO_NAME}")


def _tars(folder: Path) -> list[Path]:
    with store_errors_as_oserror(folder):
        return sorted(folder.glob("*.tar"), key=lambda path: path.name)


def _info_problems(data: Path, manifests: list[Manifest]) -> Iterator[Problem]:
    """Yield the differences between `_info.json` and the manifests."""
    info = read_info(data)
    splits = _dict(info.get("splits"))
    about = _dict(info.get("coma"))
    known = {manifest.split for manifest in manifests}
    for name in splits:
        if name not in known:
            yield Problem(str(name), MANIFEST_NAME, "", f"missing, and {INFO_NAME} has this split")
    for manifest in manifests:
        says = _dict(splits.get(manifest.split))
        expected: dict[str, Any] = {
            "num_samples": len(manifest),
            "filenames": [f"{manifest.split}/{shard}" for shard in manifest.shards],
            "shard_lengths": manifest.shard_lengths.tolist(),
        }
        if about:
            says |= _dict(_dict(about.get("splits")).get(manifest.split))
            expected["fingerprint"] = manifest.fingerprint
            expected["pixels"] = None if manifest.pixels is None else manifest.pixels.summary()
        for name, value in expected.items():
            if says.get(name) != value:
                yield Problem(manifest.split, INFO_NAME, "", f"{name} is not that of the manifest")
    if about:
        kept = sum(map(len, manifests))
        aside = sum(count for count in _dict(about.get("set_aside")).values() if isinstance(count, int))
        if about.get("found") != kept + aside:
            difference = f"says {about.get('found')} images were found, not {kept} + {aside} set aside"
            yield Problem("", INFO_NAME, "", difference)


def _quarantine_problems(data: Path) -> Iterator[Problem]:
    """Yield the differences between the tables of what is not in the data set and the counts in `_info.json`."""
    about = _dict(read_info(data).get("coma"))
    for name, key, what in (
        (QUARANTINE_NAME, "set_aside", "images were set aside"),
        (PASSED_OVER_NAME, "passed_over", "files were passed over"),
    ):
        counted = _dict(about.get(key))
        try:
            kinds = count_reasons(data / name)
        except FileNotFoundError:
            if counted:
                yield Problem("", name, "", f"missing, and {what}")
            continue
        except (pa.ArrowException, OSError, AttributeError) as error:
            yield Problem("", name, "", f"cannot be read: {' '.join(str(error).split())[:200]}")
            continue
        for kind in sorted({*kinds, *counted}):
            if kinds[kind] != counted.get(kind, 0):
                things = what.partition(" ")[0]
                difference = f"lists {kinds[kind]} {things} as {kind}, {INFO_NAME} counts {counted.get(kind, 0)}"
                yield Problem("", name, "", difference)


def _dict(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}
