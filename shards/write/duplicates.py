"""Exact duplicates: images with the same bytes as another, found by hashing all images before they are written.

Of a set of duplicates, an image of the test or val split is kept before one of train (so that evaluation sets stay
complete and nothing of them is trained on), then the first by path.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from coma.shards.images.formats import BadImageError
from coma.shards.sources.listing import SourceImage, SourceListing, SplitListing, printable
from coma.shards.sources.reader import SourceReader
from coma.shards.write.pool import run_jobs
from coma.shards.write.worker import Job, Tally

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
        """Name for messages."""
        return "the list of duplicates"

    def run(self, report: Callable[[Tally], None]) -> list[bytes | None]:
        """Return the XXH3-128 of each image, None for one that cannot be read."""
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
        except (OSError, BadImageError):
            return None  # the job that writes the shard records the reason


def refuse_duplicates(
    listing: SourceListing, workers: int | None, engine: str, progress: Callable[[Tally], None]
) -> tuple[SourceListing, int]:
    """Read every image once; refuse all but one of each set of duplicates, and return how many were refused.

    This takes 16 bytes of memory per image. Raises what `run_jobs` raises.
    """
    digests = [np.zeros(len(split), [("digest", _DIGEST), ("known", bool)]) for split in listing.splits]
    with closing(run_jobs(_jobs(listing), workers, engine)) as events:
        for event in events:
            if isinstance(event, Tally):
                progress(event)
                continue
            job, hashes = event
            assert isinstance(job, HashJob)
            for at, digest in enumerate(hashes, job.start):
                digests[job.split][at] = (digest or b"", digest is not None)
    duplicates = _duplicates(listing.splits, digests)
    splits = tuple(
        replace(split, refused={**more, **split.refused})
        for split, more in zip(listing.splits, duplicates, strict=True)
    )
    return replace(listing, splits=splits), sum(map(len, duplicates))


def _jobs(listing: SourceListing) -> Iterator[Job]:
    for number, split in enumerate(listing.splits):
        for start in range(0, len(split), _IMAGES_PER_JOB):
            images = tuple(split.image(i) for i in range(start, min(start + _IMAGES_PER_JOB, len(split))))
            yield HashJob(listing.root.absolute(), number, start, images)


def _duplicates(splits: tuple[SplitListing, ...], digests: list[npt.NDArray[Any]]) -> list[dict[int, str]]:
    """Return, for each split, the images that are duplicates, each with its reason."""
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
