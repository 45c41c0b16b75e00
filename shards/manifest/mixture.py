"""Manifest of several data sets as one: their samples, and their shards, numbered one data set after the other.

Legend: M data sets, N samples and S shards of all of them.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from coma.errors import DataError
from coma.shards.files import folder_at
from coma.shards.manifest.columns import DTYPES
from coma.shards.manifest.manifest import Manifest, read_manifest
from coma.shards.manifest.mixed_pixels import mixed_pixels
from coma.shards.manifest.pixel_coding import PixelCoding
from coma.shards.shares import named_sources, whole_weights


@dataclass(frozen=True, eq=False)
class Mixture(Manifest):
    """Several data sets with their shares.

    It holds no copy of their columns, so that those of large data sets stay mapped. It has classes if all data sets
    have the same ones, and no masks. Its `folder` is the data sets' names, and nothing lies there.
    """

    members: tuple[Manifest, ...] = ()
    """[M] the data sets, in the order in which they were named."""
    weights: tuple[int, ...] = ()
    """[M] shares of the images, as whole numbers without a common divisor."""
    names: tuple[str, ...] = ()
    """[M] short names of the data sets, all different."""

    @property
    def parts(self) -> tuple[Manifest, ...]:
        """The data sets."""
        return self.members

    @cached_property
    def first_samples(self) -> list[int]:
        """[M] the id of each data set's first sample."""
        return [0, *np.cumsum([len(member) for member in self.members]).tolist()][:-1]

    @property
    def place(self) -> str:
        """The data sets with their shares, for messages."""
        return self.folder.name

    @cached_property
    def _shard_ends(self) -> list[int]:
        return list(np.cumsum([len(member.shards) for member in self.members]).tolist())

    def source_of(self, samples: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the numbers of the data sets that these samples are of."""
        return np.searchsorted(self.first_samples, np.asarray(samples, np.int64), side="right") - 1

    def home_of_shard(self, shard: int) -> Manifest:
        """Return the data set that a shard is of."""
        return self.members[bisect_right(self._shard_ends, shard)]

    def siblings(self, sample: int) -> range:
        """Return the ids of the samples of a sample's own data set."""
        number = int(self.source_of(sample))
        first = self.first_samples[number]
        return range(first, first + len(self.members[number]))

    def named(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        """Return keys with the names of the data sets: "a-shards/000000017"."""
        names = (self.names[number] for number in self.source_of(indices))
        return [f"{name}/{key}" for name, key in zip(names, self.keys(indices), strict=True)]

    def source_names(self, sample: int) -> dict[str, str]:
        """Return {"data_set": name} of a sample's data set."""
        return {"data_set": self.names[int(self.source_of(sample))]}

    def reconnected(self) -> "Mixture":
        """Return the mixture with new connections to its stores."""
        return replace(self, members=tuple(member.reconnected() for member in self.members))

    def select(self, rows: npt.NDArray[np.int64]) -> "Manifest":
        """Return a mixture of these samples, ascending."""
        numbers, first = self.source_of(rows), self.first_samples
        return mix(
            [member.select(rows[numbers == at] - first[at]) for at, member in enumerate(self.members)], self.weights
        )

    def _strings(self, column: str, indices: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"sample {wanted.max()} of {len(self)} in {self.place}")
        numbers, strings = self.source_of(wanted), [""] * len(wanted)
        for number, first in enumerate(self.first_samples):
            places = np.flatnonzero(numbers == number)
            if len(places):
                values = self.members[number]._strings(column, wanted[places] - first)
                for at, value in zip(places.tolist(), values, strict=True):
                    strings[at] = value
        return strings


def read_mixture(
    data: Sequence[Any], split: str = "train", read: Callable[[Path, str], Manifest] = read_manifest
) -> Mixture:
    """Read several data sets, each named as `named_sources` takes it, by `read_manifest` or `load_manifest`.

    Raises:
        UsageError: a share is wrong.
        DataError: a data set is missing or damaged, or their images are of different kinds.
    """
    sources = named_sources(data)
    members = [read(folder_at(source.place), split) for source in sources]
    return mix(members, whole_weights(sources, [len(member) for member in members]))


def mix(members: Sequence[Manifest], weights: Sequence[int]) -> Mixture:
    """Return several manifests as one. Raises DataError if their images are of different kinds."""
    pixels = _pixels_of(members, weights)
    names = _names(members)
    shards, samples = [len(member.shards) for member in members], [len(member) for member in members]
    labelled = all(member.label is not None and member.class_names == members[0].class_names for member in members)
    columns: dict[str, Any] = {
        name: JoinedColumn([getattr(member, name) for member in members], samples, dtype)
        for name, dtype in DTYPES.items()
        if name != "label" or labelled
    }
    columns["shard_id"].added = [0, *np.cumsum(shards).tolist()][:-1]
    parts = " + ".join(f"{name}:{weight}" for name, weight in zip(names, weights, strict=True))
    return Mixture(
        folder=Path(parts),
        split=members[0].split,
        shards=tuple(shard for member in members for shard in member.shards),
        shard_lengths=np.concatenate([member.shard_lengths for member in members]),
        least_bytes=np.concatenate([member.least_bytes for member in members]),
        **{"label": None, **columns},
        class_names=members[0].class_names if labelled else None,
        fingerprint=fingerprint_of([member.fingerprint for member in members], weights),
        pixels=pixels,
        members=tuple(members),
        weights=tuple(weights),
        names=names,
    )


def fingerprint_of(fingerprints: Sequence[str], weights: Sequence[int]) -> str:
    """Return 16 hex digits that change with the data sets, their shares and the order in which they are named."""
    text = " ".join(f"{each}:{weight}" for each, weight in zip(fingerprints, weights, strict=True))
    return xxhash.xxh3_64_hexdigest(text.encode())


class JoinedColumn:
    """Columns of several manifests, read as if they were one array; it takes an index or an array of them.

    Args:
        columns: [M] the columns.
        lengths: [M] their lengths.
        dtype: type of their values.
    """

    def __init__(self, columns: Sequence[npt.NDArray[Any]], lengths: Sequence[int], dtype: np.dtype[Any]) -> None:
        self._columns, self._dtype = list(columns), dtype
        self._first: list[int] = [0, *np.cumsum(lengths).tolist()]  # [M + 1]
        self.added = [0] * len(columns)
        """[M] what is added to the values of each column."""

    def __len__(self) -> int:
        """Return the number of values."""
        return self._first[-1]

    def __getitem__(self, index: Any) -> Any:
        """Return one value, or an array [n] of the values at an array [n] of indices."""
        rows = np.asarray(index)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"sample {rows.max()} of {len(self)}")
        if rows.ndim == 0:
            number = bisect_right(self._first, int(rows)) - 1
            return self._dtype.type(self._columns[number][int(rows) - self._first[number]] + self.added[number])
        values = np.empty(rows.shape, self._dtype)
        numbers = np.searchsorted(self._first, rows, side="right") - 1
        for number in np.unique(numbers):
            at = numbers == number
            values[at] = self._columns[number][rows[at] - self._first[number]] + self.added[number]
        return values


def _pixels_of(members: Sequence[Manifest], weights: Sequence[int]) -> PixelCoding | None:
    """Return channels and statistics of all images together, each data set with its share; None for 8-bit RGB.

    Raises:
        DataError: the images are of different kinds, as a network takes one.
    """
    first, *others = members
    for other in others:
        if _kind(other) != _kind(first):
            raise DataError(
                f"{other.place} has {_kind(other)} and {first.place} {_kind(first)}, and a network takes images of "
                "one kind: shard them alike (coma shard --channels), or train on one"
            )
    codings = [member.pixels for member in members if member.pixels is not None]
    return mixed_pixels(codings, weights) if codings else None


def _kind(manifest: Manifest) -> str:
    return "8-bit RGB images" if manifest.pixels is None else manifest.pixels.identity


def _names(members: Sequence[Manifest]) -> tuple[str, ...]:
    """Return the names of the folders, in the letters that a metric may have; numbered where two have the same."""
    names: list[str] = []
    for member in members:
        folder = member.folder.parent if member.folder.name == "train" else member.folder
        name = base = re.sub(r"[^\w.-]+", "-", folder.name) or "data"
        number = 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return tuple(names)
