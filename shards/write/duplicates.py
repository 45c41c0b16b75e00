"""Exact duplicates: images whose bytes are the same as another's, found by hashing all of them first.

Of images that are the same, one of the test or val split is kept before one of train (an evaluation set stays
what it is, and nothing of it is trained on), then the first by path.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from coma.shards.sources.model import SourceImage, Sources, SplitSources, printable
from coma.shards.sources.read import RefusedError, SourceReader
from coma.shards.write.jobs import Job, Tally
from coma.shards.write.pool import run_jobs

_IMAGES_PER_JOB = 2048
_KEPT_FIRST = ("test", "val")
_DIGEST = np.dtype("S16")


@dataclass(frozen=True)
class HashJob:
    """Hash some images of one split."""

    root: Path
    split: int
    start: int
    images: tuple[SourceImage, ...]

    @property
    def name(self) -> str:
        """For messages."""
        return "the list of duplicates"

    def run(self, report: Callable[[Tally], None]) -> list[bytes | None]:
        """Return each image's xxh3-128, None for one that cannot be read."""
        reader = SourceReader(self.root)
        try:
            digests = [self._digest(reader, image) for image in self.images]
        finally:
            reader.close()
        report(Tally(len(self.images), sum(max(0, image.size) for image in self.images)))
        return digests

    @staticmethod
    def _digest(reader: SourceReader, image: SourceImage) -> bytes | None:
        try:
            return xxhash.xxh3_128_digest(reader.read(image))
        except (OSError, RefusedError):
            return None  # whoever writes the shard will say so


def without_duplicates(
    sources: Sources, workers: int | None, engine: str, progress: Callable[[Tally], None]
) -> Sources:
    """Read every image once; return the sources with all but one of each set of duplicates refused.

    16 bytes of memory an image. Raises as `run_jobs` does.
    """
    digests = [np.zeros(len(split), [("digest", _DIGEST), ("known", bool)]) for split in sources.splits]
    with closing(run_jobs(_jobs(sources), workers, engine)) as events:
        for event in events:
            if isinstance(event, Tally):
                progress(event)
                continue
            job, found = event
            assert isinstance(job, HashJob)
            for at, digest in enumerate(found, job.start):
                digests[job.split][at] = (digest or b"", digest is not None)
    refused = _refused(sources.splits, digests)
    splits = tuple(
        replace(split, refused={**more, **split.refused})
        for split, more in zip(sources.splits, refused, strict=True)
    )
    return replace(sources, splits=splits)


def _jobs(sources: Sources) -> Iterator[Job]:
    for number, split in enumerate(sources.splits):
        for start in range(0, len(split), _IMAGES_PER_JOB):
            images = tuple(split.image(i) for i in range(start, min(start + _IMAGES_PER_JOB, len(split))))
            yield HashJob(sources.root.absolute(), number, start, images)


def _refused(splits: tuple[SplitSources, ...], digests: list[npt.NDArray[Any]]) -> list[dict[int, str]]:
    refused: list[dict[int, str]] = [{} for _ in splits]
    ranks = {name: rank for rank, name in enumerate(_KEPT_FIRST)}
    order = sorted(range(len(splits)), key=lambda number: ranks.get(splits[number].name, len(ranks)))
    split_of = np.concatenate([np.full(len(digests[number]), number) for number in order])
    image_of = np.concatenate([np.arange(len(digests[number])) for number in order])
    table = np.concatenate([digests[number] for number in order])
    known = np.flatnonzero(table["known"])
    by_digest = known[np.argsort(table["digest"][known], kind="stable")]
    sorted_digests = table["digest"][by_digest]
    first = -1
    for at in (np.flatnonzero(sorted_digests[1:] == sorted_digests[:-1]) + 1).tolist():
        if first < 0 or sorted_digests[at] != sorted_digests[first]:
            first = at - 1
        original, copy = by_digest[first], by_digest[at]
        kept = splits[split_of[original]].paths[image_of[original]]
        refused[split_of[copy]][int(image_of[copy])] = f"duplicate: the same bytes as {printable(kept)}"
    return refused
