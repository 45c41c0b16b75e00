"""Lists that name image files and say their labels.

Paths are those below a root, the list's own folder if none is given. What leads out of it by its name is not
followed; links inside are, as they are in a folder of images.
"""

import logging
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from coma.errors import DataError
from coma.shards.sources.entries import Entries, read_entries
from coma.shards.sources.model import Listing, Sources, printable
from coma.shards.sources.parquet.columns import image_columns
from coma.shards.sources.parquet.confined import ConfinedReader
from coma.shards.sources.tables import Label, numbered, split_named
from coma.shards.sources.tree import SPLIT_OF_FOLDER

log = logging.getLogger(__name__)

_MAX_PATH = 4096  # characters; no file system here has longer ones
_ESCAPES = str.maketrans({"\0": r"\x00", "\n": r"\n", "\r": r"\r"})


def holds_images(file: Path) -> bool:
    """Whether a parquet file has images inside, or is but a list. Raises DataError if it cannot be read."""
    with ConfinedReader() as reader:
        return bool(image_columns(reader.contents(file)))


def list_paths(
    source: Path,
    path_column: str | None = None,
    label_column: str | None = None,
    root: Path | None = None,
    listed: Callable[[int], None] | None = None,
) -> Sources:
    """List the files that a .csv, .tsv, .txt or .parquet file names; they lie in `root`, or beside the list.

    All are taken for images, whatever they are called. What leads out of the root, is not there or was named
    before is listed as refused. The split is said in a column, else by the list's own name, else it is train.
    `listed` hears now and then how many were looked at.
    Raises UsageError if it takes a flag to tell which column is meant, DataError if the list is damaged or none
    of its files is there.
    """
    entries = read_entries(source, path_column, label_column)
    root = source.parent if root is None else root
    listing = _looked_at(entries.paths, root, listed)
    if len(listing) and all(_is_elsewhere(listing.refused.get(i)) for i in range(len(listing))):
        raise DataError(
            f"none of the {len(listing):,} files that {source} names is in {root} "
            f"({printable(listing.paths[0])} is {listing.refused[0].partition(':')[0]}); say with --root which "
            "folder its paths are in"
        )
    members = _members(source, entries)
    values = {split: [entries.labels[i] for i in rows] for split, rows in members.items()}
    found = numbered(source, values, entries.class_names)
    class_names = found.class_names
    if class_names is None and entries.names is not None:
        labelled = [i for split, rows in members.items() if found.labels[split] is not None for i in rows]
        class_names = _names(entries.labels, entries.names, labelled)
    order = sorted(members, key=lambda split: (split != "train", split))
    splits = tuple(listing.split(split, members[split], found.labels[split]) for split in order)
    return Sources(root, "list", splits, class_names)


def _looked_at(paths: Sequence[str], root: Path, listed: Callable[[int], None] | None) -> Listing:
    listing = Listing()
    seen: set[str] = set()
    base = os.path.abspath(root)  # noqa: PTH100  (Path.absolute leaves ".." in)
    for number, text in enumerate(paths, start=1):
        path, refused = _placed(text, base, number)
        if refused is None and path in seen:
            refused = "duplicate: listed twice"
        seen.add(path)
        size, mtime_ns = -1, 0
        if refused is None:
            try:
                status = os.stat(os.path.join(base, path))  # noqa: PTH116, PTH118  (files are many)
            except (FileNotFoundError, NotADirectoryError):
                refused = "missing: the list names it, but it is not there"
            except OSError:
                pass  # the worker will say why
            else:
                size, mtime_ns = status.st_size, status.st_mtime_ns
                if stat.S_ISDIR(status.st_mode):
                    size, refused = -1, "not an image: a folder"
        listing.add(path, size, mtime_ns, refused=refused)
        if listed is not None and len(listing) % 1000 == 0:
            listed(len(listing))
    return listing


def _placed(text: str, base: str, number: int) -> tuple[str, str | None]:
    """Return the path below `base` that an entry means, and why it is refused."""
    if not text:
        return f"(entry {number})", "missing: the list has no path there"
    if len(text) > _MAX_PATH:
        return text[:200].translate(_ESCAPES) + "...", f"unsafe name: {len(text)} characters"
    shown = text.translate(_ESCAPES)
    if shown != text:
        return shown, "unsafe name: it holds a zero byte or a line break"
    whole = os.path.normpath(os.path.join(base, text))  # noqa: PTH118
    inside = base.rstrip("/") + "/"
    if whole == base:
        return text, "not an image: a folder"
    if not whole.startswith(inside):
        return text, "outside the source: it does not lie in the folder that the list's paths are in"
    return whole[len(inside) :], None


def _is_elsewhere(refused: str | None) -> bool:
    return refused is not None and refused.startswith(("outside the source:", "missing:"))


def _members(source: Path, entries: Entries) -> dict[str, list[int]]:
    """Group images by split."""
    if entries.splits is None:
        return {split_named(source.name): list(range(len(entries.paths)))}
    split_of: dict[str, str | None] = {
        text: SPLIT_OF_FOLDER.get(text.strip().lower()) for text in set(entries.splits)
    }
    if unknown := sorted(text for text, split in split_of.items() if split is None):
        named = ", ".join(repr(text[:40]) for text in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise DataError(f"{source} has splits that are none ({named}); they are called train, val and test")
    members: dict[str, list[int]] = {}
    for i, text in enumerate(entries.splits):
        members.setdefault(split_of[text] or "", []).append(i)
    return members


def _names(labels: Sequence[Label], names: Sequence[str], labelled: Sequence[int]) -> tuple[str, ...] | None:
    """Name integer labels by the column of names beside them; None if the two do not fit each other."""
    name_of: dict[int, str] = {}
    for i in labelled:
        label, name = labels[i], names[i].strip()
        if not isinstance(label, int):
            return None
        if not name or name_of.setdefault(label, name) != name:
            log.warning(
                "the classes go without names: label %d is called %r and %r", label, name_of[label], name
            )
            return None
    return _filled(name_of)


def _filled(name_of: Mapping[int, str]) -> tuple[str, ...] | None:
    """One name for each number from 0, which is its own name where it has none."""
    count = max(name_of, default=-1) + 1
    if len(set(name_of.values())) < len(name_of) or count > 2 * len(name_of):
        log.warning("the classes go without names: two have the same, or most of their numbers have none")
        return None
    return tuple(printable(name_of.get(label, str(label))) for label in range(count)) or None
