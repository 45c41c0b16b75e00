"""Copy rows of parquet files to flat files, once: a row cannot be read by itself, and shards are shuffled.

A spool, `00000.bin` and so on for each parquet file, is the bytes of the rows that were wanted, one after the
other, then a bit for each row that says whether it was, then a digest of the listing: by these two a later run
knows what it can keep.
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
from coma.shards.sources.model import Sources, SplitSources, printable
from coma.shards.sources.parquet.confined import ConfinedReader

_NAME = re.compile(r"\d{5,}\.bin")
_DIGEST_BYTES = 16

Wanted = Mapping[str, npt.NDArray[np.bool_]]
"""Split → [n] which of its images are needed."""


def spool_bytes(sources: Sources, wanted: Wanted | None = None) -> int:
    """How many bytes of images `spool` copies if none of them is there yet."""
    return sum(int(split.sizes[_chosen(split, wanted)].sum()) for split in sources.splits)


def spool(
    sources: Sources,
    folder: Path,
    wanted: Wanted | None = None,
    progress: Callable[[int], None] | None = None,
) -> Sources:
    """Copy the images `wanted` (None is all) to spools in `folder`; return the sources that read them there.

    A spool that has all that is wanted is kept. What is returned must not be asked for other images: they read as
    changed. `progress` hears how many bytes are there now that were not; in the end that is `spool_bytes`.
    Raises ComaError before anything is written if the disk has not the space, and if it cannot be written;
    DataError if a parquet file is not what it was when it was listed. Both go on from what is done.
    """
    if sources.image_column is None:
        return sources
    told = progress or (lambda _: None)
    files, places = _places(sources)
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    spools = [
        _Spool.of(sources, file, places[file], folder.absolute() / f"{number:05d}.bin", wanted)
        for number, file in enumerate(files)
    ]
    missing = [each for each in spools if not each.stands]
    _require_space(folder, sum(each.data_bytes for each in missing))
    told(sum(each.wanted_bytes for each in spools if each.stands))
    if missing:
        with ConfinedReader() as reader:
            for each in missing:
                for copied in each.write(reader, sources.image_column):
                    told(copied)
    return replace(sources, splits=_moved(sources, spools, places), image_column=None)


def remove_spool(folder: Path) -> None:
    """Remove the spools in `folder`, and it if nothing else is in it."""
    if not folder.is_dir():
        return
    remove_temporaries(folder)
    for file in folder.iterdir():
        if _NAME.fullmatch(file.name):
            file.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


_Places = dict[int, npt.NDArray[np.int64]]
"""Split's index → which of its images are in one file."""


@dataclass(frozen=True, eq=False)
class _Spool:
    """What one parquet file gives; R rows."""

    source: Path
    mtime_ns: int
    target: Path
    lengths: npt.NDArray[np.int64]
    """[R] bytes, -1 for a null."""
    present: npt.NDArray[np.bool_]
    """[R] what is in it, or will be."""
    wanted_bytes: int
    stands: bool
    digest: bytes

    @staticmethod
    def of(sources: Sources, file: str, places: _Places, target: Path, wanted: Wanted | None) -> "_Spool":
        """Plan the spool of a file, or find it at its place with all that is wanted."""
        rows = 1 + max(int(sources.splits[s].offsets[images].max()) for s, images in places.items())
        lengths = np.full(rows, -1, np.int64)
        needed = np.zeros(rows, np.bool_)
        for s, images in places.items():
            split = sources.splits[s]
            lengths[split.offsets[images]] = split.sizes[images]
            needed[split.offsets[images]] = _chosen(split, wanted)[images]
        s, images = next(iter(places.items()))
        mtime_ns = int(sources.splits[s].mtimes_ns[images[0]])
        digest = xxhash.xxh3_128(lengths.tobytes())
        digest.update(f"{mtime_ns} {sources.image_column} ".encode() + os.fsencode(file))
        wanted_bytes = int(lengths[needed].sum())
        present = _present(target, lengths, digest.digest())
        stands = not needed.any() or (present is not None and not bool((needed & ~present).any()))
        return _Spool(
            source=sources.root / file,
            mtime_ns=mtime_ns,
            target=target,
            lengths=lengths,
            present=present if stands and present is not None else needed,
            wanted_bytes=wanted_bytes,
            stands=stands,
            digest=digest.digest(),
        )

    @property
    def data_bytes(self) -> int:
        """Bytes of images in it."""
        return int(self.lengths[self.present].sum())

    def write(self, reader: ConfinedReader, image_column: str) -> Iterator[int]:
        """Copy the images; yield how many bytes at a time."""
        try:
            changed = self.source.stat().st_mtime_ns != self.mtime_ns
        except OSError as error:
            raise DataError(
                f"{printable(str(self.source))} cannot be read ({error.strerror}); once it is back, the same "
                "command goes on"
            ) from None
        if changed:
            raise DataError(
                f"{printable(str(self.source))} was changed after it was listed; run the command again"
            )
        ending = np.packbits(self.present).tobytes() + self.digest
        yield from reader.copy(self.source, image_column, self.lengths, self.present, self.target, ending)

    def starts(self) -> npt.NDArray[np.int64]:
        """[R] where each row begins in it; for one that is not in it, its end."""
        sizes = np.where(self.present, self.lengths, 0)
        end = self.data_bytes + (len(sizes) + 7) // 8 + _DIGEST_BYTES
        return np.where(self.present, np.cumsum(sizes) - sizes, end)


def _present(target: Path, lengths: npt.NDArray[np.int64], digest: bytes) -> npt.NDArray[np.bool_] | None:
    """Read which rows a spool has; None if there is none, or it is of another listing."""
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


def _chosen(split: SplitSources, wanted: Wanted | None) -> npt.NDArray[np.bool_]:
    """[n] which images of a split are copied."""
    chosen = np.ones(len(split), np.bool_) if wanted is None else np.zeros(len(split), np.bool_)
    if wanted is not None and split.name in wanted:
        chosen |= wanted[split.name]
    chosen[list(split.refused)] = False
    return chosen & (split.sizes >= 0)


def _places(sources: Sources) -> tuple[list[str], dict[str, _Places]]:
    """Tell which images of which splits are in each file; the files in order of their names."""
    places: dict[str, _Places] = {}
    for s, split in enumerate(sources.splits):
        number: dict[str, int] = {}
        codes = np.fromiter(
            (number.setdefault(file, len(number)) for file in split.files), np.int64, len(split)
        )
        order = np.argsort(codes, kind="stable")
        groups = np.split(order, np.searchsorted(codes[order], np.arange(1, len(number))))
        for file, group in zip(number, groups, strict=False):
            places.setdefault(file, {})[s] = group
    return sorted(places, key=os.fsencode), places


def _moved(sources: Sources, spools: list[_Spool], places: dict[str, _Places]) -> tuple[SplitSources, ...]:
    files = [list(split.files) for split in sources.splits]
    offsets = [split.offsets.copy() for split in sources.splits]
    mtimes_ns = [split.mtimes_ns.copy() for split in sources.splits]
    for file, each in zip(sorted(places, key=os.fsencode), spools, strict=True):
        target, starts = str(each.target), each.starts()
        mtime_ns = each.target.stat().st_mtime_ns if each.target.exists() else 0
        for s, images in places[file].items():
            for i in images.tolist():
                files[s][i] = target
            offsets[s][images] = starts[offsets[s][images]]
            mtimes_ns[s][images] = mtime_ns
    return tuple(
        replace(split, files=files[s], offsets=offsets[s], mtimes_ns=mtimes_ns[s])
        for s, split in enumerate(sources.splits)
    )


def _require_space(folder: Path, needed_bytes: int) -> None:
    status = os.statvfs(folder)
    free_bytes = status.f_bavail * status.f_frsize
    if needed_bytes > free_bytes:
        raise ComaError(
            f"{folder} needs {needed_bytes:,} bytes for the images of the parquet files, to read them in any "
            f"order, and has {free_bytes:,} free; free some, name an OUT on another disk, or shard by --part"
        )
