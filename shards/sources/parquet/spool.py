"""Spools: flat files with the images of parquet files, which shuffled shards need because a row cannot be read alone.

The spool of a parquet file, `00000.bin` and so on, holds the bytes of the wanted rows one after the other, then a bit
for each row that says whether it is there, then a digest of the listing. By the last two a resumed run knows what it
can keep.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from coma.errors import ComaError, DataError
from coma.shards.files import remove_temporaries
from coma.shards.sources.listing import SourceListing, SplitListing, clamped, printable
from coma.shards.sources.parquet.sandbox import SandboxedReader

_NAME = re.compile(r"\d{5,}\.bin")
_DIGEST_BYTES = 16

Wanted = Mapping[str, npt.NDArray[np.bool_]]
"""Split → [n] whether each of its images is needed."""


def spool_bytes(listing: SourceListing, wanted: Wanted | None = None) -> int:
    """Return the bytes of images that `spool` copies if none of them is there yet."""
    return sum(int(split.sizes[_needed(split, wanted)].sum()) for split in listing.splits)


def spool(
    listing: SourceListing, folder: Path, wanted: Wanted | None = None, progress: Callable[[int], None] | None = None
) -> SourceListing:
    """Copy the images `wanted` (None is all) to spools in `folder`; return the listing that reads them there.

    A spool that has all wanted images is kept. Images that are not wanted read as changed in the returned listing.
    `progress` is called with the number of bytes that were copied or kept, in total `spool_bytes`.
    Raises ComaError if the disk lacks space, before anything is written, or cannot be written; DataError if a parquet
    file has changed since it was listed. After both the same call resumes.
    """
    if listing.image_column is None:
        return listing
    report = progress or (lambda _: None)
    places = _places_by_file(listing)
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    spools = [
        _Spool.lay_out(listing, file, places_in_file, folder.absolute() / f"{number:05d}.bin", wanted)
        for number, (file, places_in_file) in enumerate(places.items())
    ]
    missing = [each for each in spools if not each.is_complete]
    _require_space(folder, sum(each.data_bytes for each in missing))
    report(sum(each.wanted_bytes for each in spools if each.is_complete))
    if missing:
        with SandboxedReader() as reader:
            for each in missing:
                for copied in each.write(reader, listing.image_column):
                    report(copied)
    return replace(listing, splits=_relocated(listing, spools, places), image_column=None)


def remove_spool(folder: Path) -> None:
    """Remove the spools in `folder`, and the folder if nothing else is in it."""
    if not folder.is_dir():
        return
    remove_temporaries(folder)
    for file in folder.iterdir():
        if _NAME.fullmatch(file.name):
            file.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


_Places = dict[int, npt.NDArray[np.int64]]
"""Index of a split → which of its images are in one file."""


@dataclass(frozen=True, eq=False)
class _Spool:
    """The spool of one parquet file of R rows."""

    source: Path
    mtime_ns: int
    target: Path
    lengths: npt.NDArray[np.int64]
    """[R] bytes, -1 for a null."""
    present: npt.NDArray[np.bool_]
    """[R] whether the row is in it, or will be."""
    wanted_bytes: int
    is_complete: bool
    """Whether the spool is there with all wanted rows."""
    digest: bytes

    @staticmethod
    def lay_out(listing: SourceListing, file: str, places: _Places, target: Path, wanted: Wanted | None) -> "_Spool":
        """Lay out the spool of a file, which may be there already."""
        rows = 1 + max(int(listing.splits[s].offsets[images].max()) for s, images in places.items())
        lengths = np.full(rows, -1, np.int64)
        needed = np.zeros(rows, np.bool_)
        for s, images in places.items():
            split = listing.splits[s]
            lengths[split.offsets[images]] = split.sizes[images]
            needed[split.offsets[images]] = _needed(split, wanted)[images]
        s, images = next(iter(places.items()))
        mtime_ns = int(listing.splits[s].mtimes_ns[images[0]])
        digest = xxhash.xxh3_128(lengths.tobytes())
        digest.update(f"{mtime_ns} {listing.image_column} ".encode() + os.fsencode(file))
        present = _read_present(target, lengths, digest.digest())
        is_complete = not needed.any() or (present is not None and not bool((needed & ~present).any()))
        return _Spool(
            source=listing.root / file,
            mtime_ns=mtime_ns,
            target=target,
            lengths=lengths,
            present=present if is_complete and present is not None else needed,
            wanted_bytes=int(lengths[needed].sum()),
            is_complete=is_complete,
            digest=digest.digest(),
        )

    @property
    def data_bytes(self) -> int:
        """Bytes of images in it."""
        return int(self.lengths[self.present].sum())

    def write(self, reader: SandboxedReader, image_column: str) -> Iterator[int]:
        """Copy the images; yield the bytes copied at a time."""
        try:
            changed = clamped(self.source.stat().st_mtime_ns) != self.mtime_ns
        except OSError as error:
            raise DataError(
                f"{printable(str(self.source))} cannot be read ({error.strerror}); once it is back, the same "
                "command resumes the run"
            ) from None
        if changed:
            raise DataError(f"{printable(str(self.source))} changed after it was listed; run the command again")
        ending = np.packbits(self.present).tobytes() + self.digest
        yield from reader.copy(self.source, image_column, self.lengths, self.present, self.target, ending)

    def starts(self) -> npt.NDArray[np.int64]:
        """Return the first byte [R] of each row in it; the end of the file for rows that are not in it."""
        sizes = np.where(self.present, self.lengths, 0)
        end = self.data_bytes + (len(sizes) + 7) // 8 + _DIGEST_BYTES
        return np.where(self.present, np.cumsum(sizes) - sizes, end)


def _read_present(target: Path, lengths: npt.NDArray[np.int64], digest: bytes) -> npt.NDArray[np.bool_] | None:
    """Return which rows [R] a spool has; None if there is none, or it belongs to another listing."""
    bits = (len(lengths) + 7) // 8
    try:
        with target.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - bits - _DIGEST_BYTES))
            ending = file.read()
    except OSError:
        return None
    if len(ending) != bits + _DIGEST_BYTES or ending[bits:] != digest:
        return None
    present = np.unpackbits(np.frombuffer(ending[:bits], np.uint8), count=len(lengths)).astype(np.bool_)
    return present if int(lengths[present].sum()) + len(ending) == size else None


def _needed(split: SplitListing, wanted: Wanted | None) -> npt.NDArray[np.bool_]:
    """Return which images [n] of a split are copied."""
    needed = np.ones(len(split), np.bool_) if wanted is None else np.zeros(len(split), np.bool_)
    if wanted is not None and split.name in wanted:
        needed |= wanted[split.name]
    needed[list(split.refused)] = False
    return needed & (split.sizes >= 0)


def _places_by_file(listing: SourceListing) -> dict[str, _Places]:
    """Return which images of which splits are in each file, the files in the order of their names."""
    places: dict[str, _Places] = {}
    for s, split in enumerate(listing.splits):
        number: dict[str, int] = {}
        codes = np.fromiter((number.setdefault(file, len(number)) for file in split.files), np.int64, len(split))
        order = np.argsort(codes, kind="stable")
        groups = np.split(order, np.searchsorted(codes[order], np.arange(1, len(number))))
        for file, group in zip(number, groups, strict=False):
            places.setdefault(file, {})[s] = group
    return {file: places[file] for file in sorted(places, key=os.fsencode)}


def _relocated(listing: SourceListing, spools: list[_Spool], places: dict[str, _Places]) -> tuple[SplitListing, ...]:
    """Return the splits with the places of their images in the spools."""
    files = [list(split.files) for split in listing.splits]
    offsets = [split.offsets.copy() for split in listing.splits]
    mtimes_ns = [split.mtimes_ns.copy() for split in listing.splits]
    for each, places_in_file in zip(spools, places.values(), strict=True):
        target, starts = str(each.target), each.starts()
        mtime_ns = each.target.stat().st_mtime_ns if each.target.exists() else 0
        for s, images in places_in_file.items():
            for i in images.tolist():
                files[s][i] = target
            offsets[s][images] = starts[offsets[s][images]]
            mtimes_ns[s][images] = mtime_ns
    return tuple(
        replace(split, files=files[s], offsets=offsets[s], mtimes_ns=mtimes_ns[s])
        for s, split in enumerate(listing.splits)
    )


def _require_space(folder: Path, needed_bytes: int) -> None:
    status = os.statvfs(folder)
    free_bytes = status.f_bavail * status.f_frsize
    if needed_bytes > free_bytes:
        raise ComaError(
            f"{folder} needs {needed_bytes:,} bytes for a copy of the parquet files' images, which are read in random "
            f"order, and has {free_bytes:,} free; free some, name an OUT on another disk, or shard by --part"
        )
