"""The images to embed: sharded ones, or those of any source that `coma shard` reads, in sections of one split each.

Legend: n images of a section.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from coma.embedding.options import SOURCE_FLAGS, EmbedOptions
from coma.errors import DataError, UsageError
from coma.shards.files import folder_at, is_remote, is_there, without_credentials
from coma.shards.manifest import INFO_NAME, MANIFEST_NAME, WORK_FOLDER, Manifest, read_manifest, split_names
from coma.shards.sources.detect import list_source
from coma.shards.sources.listing import SourceListing, SplitListing, printable

logger = logging.getLogger(__name__)

Rows = Sequence[int] | npt.NDArray[np.int64]
_NAMES_READ = 2**16


@dataclass(frozen=True, eq=False)
class Section:
    """The n images of one split, sharded or not."""

    split: str
    manifest: Manifest | None
    listing: SplitListing | None
    class_names: tuple[str, ...] | None
    _names: _Names = field(default_factory=lambda: _Names())

    def __len__(self) -> int:
        """Return n."""
        return len(self.manifest if self.manifest is not None else self._listed)

    @property
    def _listed(self) -> SplitListing:
        assert self.listing is not None
        return self.listing

    @property
    def is_labelled(self) -> bool:
        """Whether its images have labels."""
        return (self.manifest.label if self.manifest is not None else self._listed.labels) is not None

    def keys(self, rows: Rows) -> list[str]:
        """Return the keys of images in their shards; the paths of images that are not sharded."""
        return self.paths(rows) if self.manifest is None else self._names.read(self.manifest.keys, rows)

    def paths(self, rows: Rows) -> list[str]:
        """Return the paths of images in their source."""
        if self.manifest is not None:
            return self._names.read(self.manifest.sources, rows)
        return [printable(self._listed.paths[row]) for row in rows]

    def labels(self, rows: Rows) -> list[int | None]:
        """Return the numbers of the classes of images, None for each without a label."""
        labels = self.manifest.label if self.manifest is not None else self._listed.labels
        return [None] * len(rows) if labels is None else labels[np.asarray(rows, np.int64)].tolist()

    def sizes(self, rows: Rows) -> list[int]:
        """Return the bytes of images, 0 where they are unknown."""
        sizes = self.manifest.size if self.manifest is not None else self._listed.sizes
        return np.maximum(sizes[np.asarray(rows, np.int64)], 0).tolist()  # type: ignore[no-any-return]


class _Names:
    """Keys and paths of sharded images, which are read from the manifest's file many at a time and kept for a while."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[int, list[str]]] = {}

    def read(self, column: Callable[[Rows], list[str]], rows: Rows) -> list[str]:
        """Return what `column` returns for rows that grow from call to call."""
        if not len(rows):
            return []
        first, last = int(min(rows)), int(max(rows))
        start, names = self._kept.get(column.__name__, (0, []))
        if not (start <= first and last < start + len(names)):
            end = len(column.__self__)  # type: ignore[attr-defined]
            start = first
            names = column(range(start, min(max(last + 1, start + _NAMES_READ), end)))
            self._kept[column.__name__] = start, names
        return [names[int(row) - start] for row in rows]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """All images to embed."""

    place: Path
    """Data set or source, as it was named."""
    name: str
    sections: tuple[Section, ...]
    listing: SourceListing | None
    """Listing of a source; None if the images are sharded."""
    fingerprint: str
    """16 hex digits that change with the names and sizes of the images; of shards, with their contents too."""
    state: str
    """Hash of the times at which files of a source were changed."""

    def __len__(self) -> int:
        """Return the number of images of all sections."""
        return sum(map(len, self.sections))

    @property
    def is_labelled(self) -> bool:
        """Whether any section has labels."""
        return any(section.is_labelled for section in self.sections)


def open_images(options: EmbedOptions, progress: Callable[[int], None] | None = None) -> ImageSet:
    """Find the images that the options name.

    Raises:
        DataError: there are no images, or the data set or source is damaged.
        UsageError: there is no such place, or an option does not fit it.
    """
    place = folder_at(options.images)
    try:
        sharded = any(is_there(place / name) for name in (INFO_NAME, MANIFEST_NAME))
    except OSError as error:
        raise DataError(f"{without_credentials(str(place))} cannot be read: {error.strerror or error}") from None
    return _sharded(place, options) if sharded else _listed(place, options, progress)


def _sharded(data: Path, options: EmbedOptions) -> ImageSet:
    given = [flag for name, flag in SOURCE_FLAGS.items() if getattr(options, name) is not None]
    if given:
        raise UsageError(f"{given[0]} is for images that are not sharded; {_shown(data)} is a sharded data set")
    names = [data.name] if is_there(data / MANIFEST_NAME) else split_names(data)
    names = _chosen(names, options.split, data)
    sections = []
    for name in names:
        manifest = read_manifest(data, name)
        sections.append(Section(manifest.split, manifest, None, manifest.class_names))
    digest = xxhash.xxh3_64()
    for section in sections:
        assert section.manifest is not None
        digest.update(f"{section.split} {section.manifest.fingerprint}\n".encode())
    return ImageSet(data, data.absolute().name or "images", tuple(sections), None, digest.hexdigest(), "")


def _listed(source: Path, options: EmbedOptions, progress: Callable[[int], None] | None) -> ImageSet:
    if is_remote(source):
        raise UsageError(
            f"{_shown(source)} holds no shards (no {INFO_NAME}); images that are not sharded are read from this "
            "machine only: copy them here, or shard them"
        )
    if (source / WORK_FOLDER).is_dir():
        raise DataError(f"{source} is not complete: run the same `coma shard` command again to resume it")
    listing = list_source(
        source,
        layout=options.layout,
        image_column=options.image_column,
        label_column=options.label_column,
        root=options.root,
        splits=options.splits,
        progress=progress,
    )
    splits = {split.name: split for split in listing.splits if len(split)}
    names = _chosen(list(splits), options.split, source)
    sections = tuple(Section(name, None, splits[name], listing.class_names) for name in names)
    digest, times = xxhash.xxh3_64(repr(listing.class_names).encode()), xxhash.xxh3_64()
    for name in names:
        split = splits[name]
        digest.update(f"\n{name}\n{len(split)}\n".encode())
        for path in split.paths:
            digest.update(os.fsencode(path) + b"\0")
        digest.update(split.sizes.tobytes())
        digest.update(b"unlabelled" if split.labels is None else split.labels.tobytes())
        times.update(split.mtimes_ns.tobytes())
    place = source.resolve()
    name = (place.name if place.is_dir() else place.stem) or "images"
    return ImageSet(source, name, sections, listing, digest.hexdigest(), times.hexdigest())


def _chosen(names: list[str], split: str | None, place: Path) -> list[str]:
    if split is not None and split not in names:
        raise UsageError(f"--split {split}: {_shown(place)} has {', '.join(names)}")
    return names if split is None else [split]


def _shown(place: Path) -> str:
    return without_credentials(str(place))
