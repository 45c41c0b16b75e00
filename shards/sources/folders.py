"""Layouts `folder` and `flat`: folders of images, with or without class folders, with or without train/ and val/.

`split_by_folders` derives splits and classes from paths, which may be those of the members of a tar as well.
"""

import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from coma.errors import DataError
from coma.shards.sources.listing import ListingBuilder, SplitListing, is_image_name, printable, train_first

log = logging.getLogger(__name__)

SPLIT_OF_FOLDER = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
CLUTTER_FOLDERS = frozenset({"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"})


def list_folder(
    root: Path, exclude: Path | None = None, progress: Callable[[int], None] | None = None
) -> tuple[ListingBuilder, Counter[str]]:
    """List the images under `root`, and count by extension the files that are not images by name.

    Links are followed, except in circles; hidden files and the folder `exclude` are passed over. Raises DataError
    if a folder cannot be read.
    """
    listing, ignored = ListingBuilder(progress), Counter[str]()
    skip = _identity(exclude) if exclude is not None and exclude.exists() else None

    def walk(folder: Path | str, prefix: str, ancestors: frozenset[tuple[int, int]]) -> None:
        for entry in _entries(folder):
            if entry.name.startswith("."):
                continue
            path = prefix + entry.name
            try:
                status = entry.stat()
            except OSError:  # a dangling link, or a circle of links
                status = None
            if status is not None and stat.S_ISDIR(status.st_mode):
                identity = (status.st_dev, status.st_ino)
                if identity == skip or entry.name in CLUTTER_FOLDERS:
                    continue
                if identity in ancestors:
                    log.warning("passed over %s: a link to a folder that holds it", printable(path))
                    continue
                walk(entry.path, path + "/", ancestors | {identity})
            elif is_image_name(entry.name):
                size, mtime_ns = (-1, 0) if status is None else (status.st_size, status.st_mtime_ns)
                listing.add(path, size, mtime_ns)
            else:
                ignored[extension_kind(entry.name)] += 1

    walk(root, "", frozenset({_identity(root)}))
    return listing, ignored


def files_below(folder: Path, extension: str, exclude: Path | None = None) -> tuple[list[str], Counter[str]]:
    """Return the paths of the files at any depth below a folder that have this extension, and count all others.

    Hidden files, links to folders and the folder `exclude` are passed over.
    """
    skip = _identity(exclude) if exclude is not None and exclude.exists() else None
    paths, others = [], Counter[str]()
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".") and _identity(Path(place, name)) != skip]
        for name in names:
            if name.startswith("."):
                continue
            if name.lower().endswith(extension):
                paths.append(str(Path(place, name).relative_to(folder)))
            else:
                others[extension_kind(name)] += 1
    return sorted(paths, key=os.fsencode), others


def extension_kind(name: str) -> str:
    """Return a file's extension as it is counted in messages, or "no extension"."""
    return printable(os.path.splitext(name)[1].lower()) or "no extension"  # noqa: PTH122  (files are many)


def split_by_folders(
    listing: ListingBuilder, class_folders: bool = True
) -> tuple[tuple[SplitListing, ...], tuple[str, ...] | None]:
    """Derive splits and classes from the paths of a listing; return the splits, train first, and the class names.

    The class is the first folder (below the split's), as in torchvision's ImageFolder; a split with an image outside
    any class folder has no labels. Without `class_folders` none has. Refused images, which may have any name
    ("../x.jpg"), are not considered: one that fits nowhere goes to the first split, with the first label.
    """
    members = _by_split(listing.paths, listing.refused)
    roots = {name: {top for top, i in group if i not in listing.refused} for name, group in members.items()}
    classes = {
        name: [_first_folder(listing.paths[i], top) if class_folders else None for top, i in group]
        for name, group in members.items()
    }
    good = {
        name: [c for c, (_, i) in zip(classes[name], group, strict=True) if i not in listing.refused]
        for name, group in members.items()
    }
    names = sorted({c for split in good.values() if None not in split for c in split if c is not None}, key=os.fsencode)
    index = {name: i for i, name in enumerate(names)}
    splits = []
    for name in train_first(members):
        labelled = bool(good[name]) and None not in good[name]
        labels = [index.get(c, 0) if c is not None else 0 for c in classes[name]] if labelled else None
        splits.append(listing.split(name, [i for _, i in members[name]], labels))
        if len(roots[name]) > 1:
            log.info("split %s combines the folders %s", name, ", ".join(sorted(roots[name])))
    return tuple(splits), tuple(map(printable, names)) or None


def _entries(folder: Path | str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"cannot list the folder {printable(str(folder))}: {error.strerror}") from error


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _by_split(paths: Sequence[str], refused: dict[int, str]) -> dict[str, list[tuple[str, int]]]:
    """Group images by split, {split: [(split's folder with its slash, or "", image)]}, and refuse all others.

    Folders named train, val, ... are splits if there are no other folders, or if a train folder has a val or test
    folder beside it; otherwise they are classes (CIFAR-100 has a class "train").
    """
    top_of = [path.split("/", 1)[0] if "/" in path else "" for path in paths]
    tops = {top for i, top in enumerate(top_of) if i not in refused} or set(top_of)
    split_of = {top: SPLIT_OF_FOLDER[top.lower()] for top in tops if top.lower() in SPLIT_OF_FOLDER}
    splits = set(split_of.values())
    if not split_of or (len(split_of) < len(tops) and not ("train" in splits and len(splits) > 1)):
        return {"train": [("", i) for i in range(len(paths))]}
    groups: dict[str, list[tuple[str, int]]] = {}
    strays: list[int] = []
    for i, top in enumerate(top_of):
        if top in split_of:
            groups.setdefault(split_of[top], []).append((top + "/", i))
        else:
            strays.append(i)
            refused.setdefault(i, f"outside the splits: beside {' and '.join(sorted(split_of))}")
    first = train_first(groups)[0]
    groups[first] += [(groups[first][0][0], i) for i in strays]
    return groups


def _first_folder(path: str, top: str) -> str | None:
    head, slash, _ = path[len(top) :].partition("/")
    return head if slash else None
