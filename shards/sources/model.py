"""What a source is, whatever it is stored in: named images, each a range of bytes in some file.

Legend: n images of one split.
"""

import os
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

IMAGE_EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".jp2", ".j2k", ".avif", ".heic", ".heif", ".jxl"),
    )
)
"""A file with one of these is an image by name: it ends up in a shard or in the quarantine, never nowhere."""

WHOLE_FILE = -1
"""The offset of an image that is a file of its own."""


MAX_IMAGE_BYTES = 256 * 2**20
"""An encoded image with more is set aside unread: a worker holds it whole, and its pixels besides."""


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image of a source: what it is called, where its bytes are, what is known of it."""

    path: str
    """Its name in the manifest and the quarantine."""
    file: str
    """The file that holds it, relative to the source's root (or absolute)."""
    offset: int
    """Where it starts in that file, or WHOLE_FILE."""
    size: int
    """Bytes, as listed; -1 for what could not be looked at."""
    mtime_ns: int
    """When that file was last changed, as listed; 0 if unknown."""
    label: int | None
    refused: str | None
    """Why it is set aside without a look at it, or None."""


@dataclass(frozen=True, eq=False)
class SplitSources:
    """The images of one split, sorted by path; n images."""

    name: str
    paths: Sequence[str]
    """[n] as `SourceImage.path`; undecodable bytes of a name as surrogates, as `os` gives them."""
    files: Sequence[str]
    """[n] as `SourceImage.file`; images in one container share the same string."""
    offsets: npt.NDArray[np.int64]
    """[n] bytes, or WHOLE_FILE; in a source of parquet rows that are not spooled yet, the row's number."""
    sizes: npt.NDArray[np.int64]
    """[n] bytes, -1 for what could not be looked at (a dangling link)."""
    mtimes_ns: npt.NDArray[np.int64]
    """[n] of the file that holds each."""
    labels: npt.NDArray[np.int32] | None
    """[n] index into the class names, or None for a split without labels."""
    refused: dict[int, str] = field(default_factory=dict)
    """Images that are set aside unread: why."""

    def __len__(self) -> int:
        """n."""
        return len(self.paths)

    def image(self, i: int) -> SourceImage:
        """Image i of the split."""
        return SourceImage(
            path=self.paths[i],
            file=self.files[i],
            offset=int(self.offsets[i]),
            size=int(self.sizes[i]),
            mtime_ns=int(self.mtimes_ns[i]),
            label=None if self.labels is None else int(self.labels[i]),
            refused=self.refused.get(i),
        )


@dataclass(frozen=True)
class Sources:
    """A source, listed."""

    root: Path
    layout: str
    """How it was read, one of LAYOUTS."""
    splits: tuple[SplitSources, ...]
    """Train first."""
    class_names: tuple[str, ...] | None
    class_words: tuple[str, ...] | None = None
    """What the classes are called in English where the source says so ("tench, Tinca tinca"), one a class."""
    ignored: Counter[str] = field(default_factory=Counter)
    """How many files of each extension are not images by name."""
    image_column: str | None = None
    """Set if the images are rows of parquet files, which have to be spooled before they can be read."""

    def __len__(self) -> int:
        """Images, of all splits."""
        return sum(map(len, self.splits))


LAYOUTS = {
    "folder": "folders of images, the first folder's name is the class, train/ and val/ are splits",
    "flat": "folders of images, without labels",
    "imagenet": "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and the devkit, as downloaded",
    "kaggle": "ImageNet as Kaggle packs it: ILSVRC/Data/CLS-LOC and LOC_*.csv",
    "tar": "tars of image folders",
    "webdataset": "tars of WebDataset samples",
    "parquet": "Hugging Face parquet with the images inside",
    "list": "a CSV, TSV, text or parquet file of paths and labels",
}
"""What a source may look like, and how that is said."""


class Listing:
    """Images as they are found, in columns; `split` turns some of them into a SplitSources."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.files: list[str] = []
        self.offsets = array("q")
        self.sizes = array("q")
        self.mtimes_ns = array("q")
        self.refused: dict[int, str] = {}

    def __len__(self) -> int:
        """Images so far."""
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
        """Add one image; without `file` it is a file of its own, found under `path`."""
        if refused is not None:
            self.refused[len(self.paths)] = refused
        self.paths.append(path)
        self.files.append(path if file is None else file)
        self.offsets.append(offset)
        self.sizes.append(size)
        self.mtimes_ns.append(mtime_ns)

    def split(self, name: str, chosen: Iterable[int], labels: Sequence[int] | None = None) -> SplitSources:
        """The images `chosen`, sorted by path (by its bytes); `labels` are parallel to `chosen`."""
        indices = list(chosen)
        order = sorted(range(len(indices)), key=lambda at: os.fsencode(self.paths[indices[at]]))
        rows = [indices[at] for at in order]
        return SplitSources(
            name=name,
            paths=[self.paths[row] for row in rows],
            files=[self.files[row] for row in rows],
            offsets=_taken(self.offsets, rows),
            sizes=_taken(self.sizes, rows),
            mtimes_ns=_taken(self.mtimes_ns, rows),
            labels=None if labels is None else np.asarray(labels, np.int32)[order],
            refused={at: self.refused[row] for at, row in enumerate(rows) if row in self.refused},
        )


def _taken(column: "array[int]", rows: list[int]) -> npt.NDArray[np.int64]:
    return np.frombuffer(column, np.int64)[rows] if rows else np.empty(0, np.int64)


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its name."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS  # noqa: PTH122  (pathlib is slow, files are many)


def printable(path: str) -> str:
    """The path as text that every file format takes: undecodable bytes become backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def counted(counts: Counter[str]) -> str:
    """Say how many files there are of which kinds: "3 files (2 .txt, 1 .md)"."""
    total = sum(counts.values())
    kinds = [
        f"{count} {what}" for what, count in sorted(counts.items(), key=lambda kind: (-kind[1], kind[0]))[:4]
    ]
    more = ", ..." if len(counts) > 4 else ""
    return f"{total:,} {'file' if total == 1 else 'files'} ({', '.join(kinds)}{more})"
