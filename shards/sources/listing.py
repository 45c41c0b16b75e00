"""Listing of a source: its images, each a named range of bytes in some file, with labels, in splits.

Legend: n images of one split.
"""

import logging
import os
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coma.shards.manifest.mask_coding import MaskCoding
from coma.shards.sources.kinds import is_packed_name
from coma.shards.text import printable as printable
from coma.shards.tiles.grid import Tile, image_numbers

log = logging.getLogger(__name__)

WHOLE_FILE = -1
"""The offset of an image that is a file of its own."""

MAX_IMAGE_BYTES = 256 * 2**20
"""The limit above which an encoded image is set aside unread: a worker holds it in memory beside its pixels."""

_REPORT_EVERY_IMAGES = 1000


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image of a source: its name, the place of its bytes, its label."""

    path: str
    """Name in the manifest and the quarantine."""
    file: str
    """The file that holds it, relative to the source's root (or absolute)."""
    offset: int
    """First byte in that file, or WHOLE_FILE."""
    size: int
    """Bytes when it was listed; -1 if unknown."""
    mtime_ns: int
    """Modification time of that file when it was listed, `clamped`; 0 if unknown."""
    label: int | None
    refused: str | None
    """Why it is set aside unread, or None."""
    mask: "SourceImage | None" = None
    """Its segmentation mask, which is itself an image."""
    tile: Tile | None = None
    """The tile of it that is meant; None: all of it."""

    @property
    def bytes(self) -> int:
        """Bytes that stand for it in progress and quarantine."""
        return max(0, self.size) if self.tile is None else self.tile.bytes


@dataclass(frozen=True, eq=False)
class SplitListing:
    """The images of one split, sorted by path; n images."""

    name: str
    paths: Sequence[str]
    """[n] `SourceImage.path`, with undecodable bytes as surrogates, as in `os`."""
    files: Sequence[str]
    """[n] `SourceImage.file`; images in one container share the same string."""
    offsets: npt.NDArray[np.int64]
    """[n] first byte, or WHOLE_FILE; for parquet rows that are not spooled yet, the row number."""
    sizes: npt.NDArray[np.int64]
    """[n] bytes, -1 if unknown (a dangling link)."""
    mtimes_ns: npt.NDArray[np.int64]
    """[n] modification time of each image's file."""
    labels: npt.NDArray[np.int32] | None
    """[n] index into the class names, or None for a split without labels."""
    refused: dict[int, str] = field(default_factory=dict)
    """Images that are set aside unread: number → reason."""
    masks: "SplitListing | None" = None
    """[n] mask of each image, with an empty path where there is none; None: no image of the split has one."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    @property
    def group_of(self) -> npt.NDArray[np.int64] | None:
        """[n] number of the group that an image belongs to, none of which is torn apart; None: there are none.

        Tiles that were cut before, and are read from a tar by name, go by the image that they were cut from.
        """
        return image_numbers(self.paths)

    @property
    def source_bytes(self) -> npt.NDArray[np.int64]:
        """[n] bytes of each image and its mask."""
        sizes = np.maximum(self.sizes, 0)
        return sizes if self.masks is None else sizes + np.maximum(self.masks.sizes, 0)

    def image(self, i: int) -> SourceImage:
        """Return image i of the split."""
        return SourceImage(
            path=self.paths[i],
            file=self.files[i],
            offset=int(self.offsets[i]),
            size=int(self.sizes[i]),
            mtime_ns=int(self.mtimes_ns[i]),
            label=None if self.labels is None else int(self.labels[i]),
            refused=self.refused.get(i),
            mask=self.masks.image(i) if self.masks is not None and self.masks.paths[i] else None,
        )


@dataclass(frozen=True)
class SourceListing:
    """All images of a source."""

    root: Path
    layout: str
    """The layout that it was read as, one of LAYOUTS."""
    splits: tuple[SplitListing, ...]
    """Train first."""
    class_names: tuple[str, ...] | None
    class_words: tuple[str, ...] | None = None
    """English names of the classes ("tench, Tinca tinca"), one for each, if the source has them."""
    passed_over: "PassedOver" = field(default_factory=lambda: PassedOver())
    """The files that are no images."""
    splits_are_told: bool = False
    """Whether something else than names of folders and files says the splits."""
    image_column: str | None = None
    """Set if the images are rows of parquet files, which have to be spooled before they can be read."""
    mask_coding: MaskCoding | None = None
    """Classes of the masks; None: no image has a mask."""

    def __len__(self) -> int:
        """Number of images in all splits."""
        return sum(map(len, self.splits))


LAYOUTS = {
    "folder": "folders of images",
    "flat": "folders of images, taken without labels",
    "masks": "folders of images and of segmentation masks with the same names",
    "ade20k": "ADE20K's scene parsing: ADEChallengeData2016",
    "voc": "Pascal VOC's segmentation: VOCdevkit/VOC2012",
    "imagenet": "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and the devkit, as downloaded",
    "kaggle": "ImageNet as Kaggle packs it: ILSVRC/Data/CLS-LOC and LOC_*.csv",
    "tar": "tars of image folders",
    "webdataset": "tars of WebDataset samples",
    "parquet": "Hugging Face parquet with the images inside",
    "list": "a CSV, TSV, text or parquet file of paths and labels",
}
"""Layout of a source → its description."""


class ListingBuilder:
    """Collects images in columns; `split` turns some of them into a SplitListing.

    `progress` is called now and then with the number of images so far.
    """

    def __init__(self, progress: Callable[[int], None] | None = None) -> None:
        self._progress = progress
        self.paths: list[str] = []
        self.files: list[str] = []
        self.offsets = array("q")
        self.sizes = array("q")
        self.mtimes_ns = array("q")
        self.refused: dict[int, str] = {}
        self.masks: ListingBuilder | None = None
        """Masks of the images."""
        self.mask_of: dict[int, int] = {}
        """Image → its mask, among `masks`."""

    def __len__(self) -> int:
        """Number of images so far."""
        return len(self.paths)

    def add(
        self,
        path: str,
        size: int,
        mtime_ns: int,
        file: str | None = None,
        offset: int = WHOLE_FILE,
        refused: str | None = None,
    ) -> None:
        """Add one image; without `file` it is a file of its own at `path`."""
        if refused is not None:
            self.refused[len(self.paths)] = refused
        self.paths.append(path)
        self.files.append(path if file is None else file)
        self.offsets.append(offset)
        self.sizes.append(size)
        self.mtimes_ns.append(clamped(mtime_ns))
        if self._progress is not None and len(self) % _REPORT_EVERY_IMAGES == 0:
            self._progress(len(self))

    def split(self, name: str, chosen: Iterable[int], labels: Sequence[int] | None = None) -> SplitListing:
        """Return the images `chosen`, sorted by the bytes of their paths; `labels` are parallel to `chosen`."""
        indices = list(chosen)
        order = sorted(range(len(indices)), key=lambda at: os.fsencode(self.paths[indices[at]]))
        rows = [indices[at] for at in order]
        return SplitListing(
            name=name,
            paths=[self.paths[row] for row in rows],
            files=[self.files[row] for row in rows],
            offsets=_take(self.offsets, rows),
            sizes=_take(self.sizes, rows),
            mtimes_ns=_take(self.mtimes_ns, rows),
            labels=None if labels is None else np.asarray(labels, np.int32)[order],
            refused={at: self.refused[row] for at, row in enumerate(rows) if row in self.refused},
            masks=self._masks(name, rows),
        )

    def _masks(self, split: str, rows: list[int]) -> SplitListing | None:
        masks, of_rows = self.masks, [self.mask_of.get(row, -1) for row in rows]
        if masks is None or max(of_rows, default=-1) < 0:
            return None
        there = np.array(of_rows, np.int64) >= 0

        def taken(column: "array[int]") -> npt.NDArray[np.int64]:
            return np.where(there, _take(column, [max(0, row) for row in of_rows]), 0)

        return SplitListing(
            name=split,
            paths=[masks.paths[row] if row >= 0 else "" for row in of_rows],
            files=[masks.files[row] if row >= 0 else "" for row in of_rows],
            offsets=taken(masks.offsets),
            sizes=taken(masks.sizes),
            mtimes_ns=taken(masks.mtimes_ns),
            labels=None,
        )

    def take(self, rows: Iterable[int]) -> "ListingBuilder":
        """Return a listing of some of the images."""
        taken = ListingBuilder()
        for row in rows:
            place = (self.paths[row], self.sizes[row], self.mtimes_ns[row], self.files[row], self.offsets[row])
            taken.add(*place, self.refused.get(row))
        return taken

    def splits(
        self, members: Mapping[str, Sequence[int]], labels: Mapping[str, Sequence[int] | None]
    ) -> tuple[SplitListing, ...]:
        """Return all splits, train first: `members` maps a split to its images, `labels` to their labels."""
        return tuple(self.split(name, members[name], labels[name]) for name in train_first(members))


def _take(column: "array[int]", rows: list[int]) -> npt.NDArray[np.int64]:
    return np.frombuffer(column, np.int64)[rows] if rows else np.empty(0, np.int64)


class PassedOver:
    """The files of a source that are neither kept nor set aside, because they are no images."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        """Names below the source, as in the manifest."""
        self.kinds: list[str] = []
        """What each one is: ".txt", "hidden", "link in a circle" ..."""
        self.sizes = array("q")
        """Bytes, -1 if unknown."""

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def add(self, path: str, kind: str, size: int) -> None:
        """Add one file."""
        self.paths.append(path)
        self.kinds.append(sys.intern(kind))
        self.sizes.append(size)

    def add_all(self, others: "PassedOver") -> None:
        """Add the files of another collection."""
        self.paths += others.paths
        self.kinds += others.kinds
        self.sizes += others.sizes

    def counts(self) -> Counter[str]:
        """Return the number of files of each kind."""
        return Counter(self.kinds)


def clamped(mtime_ns: int) -> int:
    """Return a time of change that fits into 64 bits; file systems know years past 2262."""
    return max(-(2**63), min(mtime_ns, 2**63 - 1))


def train_first(splits: Iterable[str]) -> list[str]:
    """Sort the names of splits, train first."""
    return sorted(splits, key=lambda name: (name != "train", name))


def counted(counts: Counter[str]) -> str:
    """Return a count of files by kind as text: "3 files (2 .txt, 1 .md)"."""
    total = sum(counts.values())
    kinds = [f"{count} {what}" for what, count in sorted(counts.items(), key=lambda kind: (-kind[1], kind[0]))[:4]]
    more = ", ..." if len(counts) > 4 else ""
    return f"{total:,} {'file' if total == 1 else 'files'} ({', '.join(kinds)}{more})"


def counted_images(images: int) -> str:
    """Return a number of images as text."""
    return "1 image" if images == 1 else f"{images:,} images"


def warn_of_packed(passed_over: PassedOver) -> None:
    """Warn of archives, which may have images in them, among the files that are passed over."""
    packed = [path for path in passed_over.paths if is_packed_name(path)]
    if packed:
        log.warning(
            "%d packed %s not read, such as %s: unpack what has images in it (a plain .tar is read where it lies)",
            len(packed),
            "file is" if len(packed) == 1 else "files are",
            printable(packed[0]),
        )
