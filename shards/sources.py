"""What people have: a folder of images, with class folders or without, with train/ and val/ or without."""

import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coma.errors import DataError, UsageError

log = logging.getLogger(__name__)

IMAGE_EXTENSIONS = frozenset(
    f".{extension}"
    for extension in (
        *(
            "jpg",
            "jpeg",
            "jpe",
            "jfif",
            "png",
            "webp",
            "bmp",
            "dib",
            "tif",
            "tiff",
            "ppm",
            "pgm",
            "pbm",
            "pnm",
        ),
        *("gif", "jp2", "j2k", "avif", "heic", "heif", "jxl"),  # known, and known not to be supported
    )
)
"""A file with one of these is an image by name: it ends up in a shard or in the quarantine, never nowhere."""

SPLIT_OF_FOLDER = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_CLUTTER_FOLDERS = frozenset(
    {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
)


@dataclass(frozen=True)
class SplitSources:
    """The image files of one split, sorted by path; n files."""

    name: str
    paths: list[str]
    """[n] relative to the source folder; undecodable bytes of a name as surrogates, as `os` gives them."""
    sizes: npt.NDArray[np.int64]
    """[n] bytes, -1 for what could not be looked at (a dangling link)."""
    labels: npt.NDArray[np.int32] | None
    """[n] index into the class names, or None when the split has no class folders."""


@dataclass(frozen=True)
class Sources:
    """A source folder, listed."""

    root: Path
    splits: tuple[SplitSources, ...]
    class_names: tuple[str, ...] | None
    ignored: Counter[str] = field(default_factory=Counter)
    """How many files of each extension are not images by name."""

    def __len__(self) -> int:
        """Images, of all splits."""
        return sum(len(split.paths) for split in self.splits)


def printable(path: str) -> str:
    """The path as text that every file format takes: undecodable bytes become backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def find_sources(
    source: Path, exclude: Path | None = None, listed: Callable[[int], None] | None = None
) -> Sources:
    """List the images under `source` and tell splits and classes from its folders.

    Links are followed, but never round in a circle; hidden files are passed over; so is the folder `exclude`.
    `listed` hears now and then how many images were found. Raises UsageError if `source` does not exist or is
    not a folder, DataError if there is no image in it or a folder cannot be read.
    """
    if not source.exists():
        raise UsageError(f"no such folder: {source}")
    if not source.is_dir():
        raise UsageError(f"{source} is a file; give the folder that holds the images")
    ignored: Counter[str] = Counter()
    skip = _identity(exclude) if exclude is not None and exclude.exists() else None
    found: list[tuple[str, int]] = []
    for file in _walk(source, "", ignored, {_identity(source)}, skip):
        found.append(file)
        if listed is not None and len(found) % 1000 == 0:
            listed(len(found))
    if not found:
        what = f"; it has {_said(ignored)}" if ignored else ""
        raise DataError(f"no images in {source}{what}")
    found.sort(key=lambda file: os.fsencode(file[0]))
    sources = _arranged(source, found, ignored)
    _announce(sources)
    return sources


def read_source(root: Path, path: str) -> bytes:
    """Read one source file whole. Raises OSError, also if it is not a regular file (a pipe would block)."""
    descriptor = os.open(root / path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123  (a descriptor, not a path)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("not a regular file")
        return file.read()


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _walk(
    folder: Path | str,
    prefix: str,
    ignored: Counter[str],
    ancestors: set[tuple[int, int]],
    skip: tuple[int, int] | None,
) -> Iterator[tuple[str, int]]:
    """Yield (path relative to the source, bytes) of each file that is an image by name."""
    try:
        with os.scandir(folder) as entries:
            listing = list(entries)
    except OSError as error:
        raise DataError(f"cannot list the folder {printable(str(folder))}: {error.strerror}") from error
    for entry in listing:
        if entry.name.startswith("."):
            continue
        path = prefix + entry.name
        try:
            status = entry.stat()
        except OSError:  # a dangling link, or a circle of links
            status = None
        if status is not None and stat.S_ISDIR(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            if identity == skip or entry.name in _CLUTTER_FOLDERS:
                continue
            if identity in ancestors:
                log.warning("passed over %s: a link to a folder that holds it", printable(path))
                continue
            yield from _walk(entry.path, path + "/", ignored, ancestors | {identity}, skip)
            continue
        extension = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  (pathlib is slow, files are many)
        if extension in IMAGE_EXTENSIONS:
            yield path, status.st_size if status is not None else -1
        else:
            ignored[printable(extension) or "no extension"] += 1


def _arranged(root: Path, files: list[tuple[str, int]], ignored: Counter[str]) -> Sources:
    groups = _by_split(files)
    roots = {name: {top for top, _ in group} for name, group in groups.items()}
    folders = {name: [_first_folder(path, top) for top, (path, _) in group] for name, group in groups.items()}
    names = sorted(
        {c for split in folders.values() if None not in split for c in split if c is not None},
        key=os.fsencode,
    )
    index = {name: i for i, name in enumerate(names)}
    splits = []
    for name in sorted(groups, key=lambda name: (name != "train", name)):
        classes = folders[name]
        labels = None
        if None not in classes:
            labels = np.fromiter((index[c] for c in classes if c is not None), np.int32, len(classes))
        splits.append(
            SplitSources(
                name=name,
                paths=[path for _, (path, _) in groups[name]],
                sizes=np.fromiter((size for _, (_, size) in groups[name]), np.int64, len(classes)),
                labels=labels,
            )
        )
        if len(roots[name]) > 1:
            log.info("split %s is made of the folders %s", name, ", ".join(sorted(roots[name])))
    return Sources(root, tuple(splits), tuple(map(printable, names)) or None, ignored)


def _by_split(files: list[tuple[str, int]]) -> dict[str, list[tuple[str, tuple[str, int]]]]:
    """Group files by split: {split: [(split's folder with its slash, or "", file)]}.

    Folders named train, val, ... are splits when there is nothing else, or when a train folder has a val or
    test folder beside it; else they are taken for classes (CIFAR-100 has a class "train").
    """
    top_of = [path.split("/", 1)[0] if "/" in path else "" for path, _ in files]
    tops = set(top_of)
    split_of = {top: SPLIT_OF_FOLDER[top.lower()] for top in tops if top.lower() in SPLIT_OF_FOLDER}
    splits = set(split_of.values())
    if not split_of or (len(split_of) < len(tops) and not ("train" in splits and len(splits) > 1)):
        return {"train": [("", file) for file in files]}
    groups: dict[str, list[tuple[str, tuple[str, int]]]] = {}
    beside: Counter[str] = Counter()
    for top, file in zip(top_of, files, strict=True):
        if top in split_of:
            groups.setdefault(split_of[top], []).append((top + "/", file))
        else:
            beside[printable(top + "/" if top else file[0])] += 1
    if beside:
        log.warning(
            "left out %d images beside %s: %s",
            sum(beside.values()),
            " and ".join(sorted(split_of)),
            _said(beside),
        )
    return groups


def _first_folder(path: str, top: str) -> str | None:
    head, slash, _ = path[len(top) :].partition("/")
    return head if slash else None


def _announce(sources: Sources) -> None:
    for split in sources.splits:
        images = "1 image" if len(split.paths) == 1 else f"{len(split.paths):,} images"
        if split.labels is None:
            log.info("found %s without labels, split %s", images, split.name)
        else:
            classes = len(np.unique(split.labels))
            folders = "1 class folder" if classes == 1 else f"{classes:,} class folders"
            log.info("found %s in %s, split %s", images, folders, split.name)
    labelled = {split.labels is not None for split in sources.splits}
    if len(labelled) > 1:
        log.warning("some splits have class folders and some have not; only the former get labels")
    if sources.ignored:
        log.info("passed over %s: not images by name", _said(sources.ignored))


def _said(counts: Counter[str]) -> str:
    total = sum(counts.values())
    kinds = [
        f"{count} {what}" for what, count in sorted(counts.items(), key=lambda kind: (-kind[1], kind[0]))[:4]
    ]
    more = ", ..." if len(counts) > 4 else ""
    return f"{total:,} {'file' if total == 1 else 'files'} ({', '.join(kinds)}{more})"
