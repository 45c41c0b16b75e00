"""Check a data set against its manifest: every sample's bytes are in their place and what they were."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from coma.errors import DataError
from coma.shards.images import BadImageError, check_image
from coma.shards.manifest import MANIFEST_NAME, Manifest, load_manifest, split_names

_TAR_BLOCK_BYTES = 512


@dataclass(frozen=True)
class Problem:
    """Something that differs; `key` is empty when it is the whole shard."""

    split: str
    shard: str
    key: str
    reason: str


@dataclass(frozen=True)
class VerifyReport:
    """What was checked, and what differs."""

    samples: int
    shards: int
    image_bytes: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class VerifyProgress:
    """How far a check is."""

    shards: int
    total_shards: int
    image_bytes: int
    total_image_bytes: int
    problems: int


def verify(
    data: Path,
    decode: bool = False,
    workers: int = 4,
    progress: Callable[[VerifyProgress], None] | None = None,
) -> VerifyReport:
    """Read every sample and compare its hash with the manifest's; with `decode`, decode it too.

    Problems are reported, not raised: a missing or cut shard, a sample that is not where the manifest says or
    not what it was, a tar that no manifest lists. Raises DataError if there is no data set or no readable
    manifest.
    """
    manifests = load_manifests(data)
    total_shards = sum(len(manifest.shards) for manifest in manifests)
    total_bytes = sum(int(manifest.size.sum()) for manifest in manifests)
    problems = [problem for manifest in manifests for problem in _unlisted(manifest)]
    shards = image_bytes = 0
    pool = ThreadPoolExecutor(workers)
    try:
        checks = {
            pool.submit(_check_shard, manifest, shard, decode): int(
                manifest.size[manifest.shard_id == shard].sum()
            )
            for manifest in manifests
            for shard in range(len(manifest.shards))
        }
        for check in as_completed(checks):
            problems += check.result()
            shards += 1
            image_bytes += checks[check]
            if progress is not None:
                progress(VerifyProgress(shards, total_shards, image_bytes, total_bytes, len(problems)))
    finally:
        pool.shutdown(cancel_futures=True)
    samples = sum(map(len, manifests))
    ordered = sorted(problems, key=lambda problem: (problem.split, problem.shard, problem.key))
    return VerifyReport(samples, total_shards, total_bytes, tuple(ordered))


def load_manifests(data: Path) -> list[Manifest]:
    """Read the manifests of all splits of a data set, or the one of a split's folder, train first."""
    data = Path(data)
    if (data / MANIFEST_NAME).is_file():
        return [load_manifest(data)]
    if not data.is_dir():
        raise DataError(
            f"no sharded data set at {data}: {'it is a file' if data.exists() else 'no such folder'}"
        )
    return [load_manifest(data, name) for name in split_names(data)]


def _unlisted(manifest: Manifest) -> Iterator[Problem]:
    for tar in sorted(manifest.folder.glob("*.tar")):
        if tar.name not in manifest.shards:
            yield Problem(manifest.split, tar.name, "", "not in the manifest: stock readers would read it")


def _check_shard(manifest: Manifest, shard: int, decode: bool) -> list[Problem]:
    name = manifest.shards[shard]
    rows = np.flatnonzero(manifest.shard_id == shard)
    try:
        descriptor = os.open(manifest.folder / name, os.O_RDONLY)
    except OSError as error:
        return [Problem(manifest.split, name, "", f"cannot be read: {error.strerror}")]
    problems = []
    try:
        for row, key in zip(rows, manifest.keys(rows), strict=True):
            reason = _check_sample(manifest, int(row), key, descriptor, decode)
            if reason is not None:
                problems.append(Problem(manifest.split, name, key, reason))
    except OSError as error:
        problems.append(Problem(manifest.split, name, "", f"cannot be read: {error.strerror}"))
    finally:
        os.close(descriptor)
    return problems


def _check_sample(manifest: Manifest, row: int, key: str, descriptor: int, decode: bool) -> str | None:
    """Return what is wrong with a sample, None if nothing is."""
    size, offset = int(manifest.size[row]), int(manifest.offset[row])
    header_at = max(0, offset - _TAR_BLOCK_BYTES)
    read = os.pread(descriptor, offset - header_at + size, header_at)
    header, image = read[: offset - header_at], read[offset - header_at :]
    if len(image) != size:
        return f"the shard ends {size - len(image)} bytes before the image does"
    if xxhash.xxh3_64_intdigest(image) != manifest.xxh3_64[row]:
        return "its bytes are not what they were (the hash differs)"
    if not header.startswith(f"{key}.".encode()):
        return "the tar has another member there"
    if decode:
        try:
            facts = check_image(image)
        except BadImageError as error:
            return f"does not decode: {error}"
        if (facts.width, facts.height) != (manifest.width[row], manifest.height[row]):
            return f"is {facts.width}x{facts.height} pixels, not {manifest.width[row]}x{manifest.height[row]}"
    return None
