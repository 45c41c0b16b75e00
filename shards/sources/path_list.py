"""Layout `list`: a file that lists the paths of images and their labels.

Paths are relative to a root, by default the list's own folder. Paths that lead out of it are refused; links within it
are followed, as in a folder of images.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from coma.errors import DataError
from coma.shards.sources.folder_names import splits_by_folders
from coma.shards.sources.labels import Label, names_beside, number_labels, split_from_name
from coma.shards.sources.listing import ListingBuilder, SourceListing, printable
from coma.shards.sources.parquet.columns import image_columns
from coma.shards.sources.parquet.sandbox import SandboxedReader
from coma.shards.sources.path_list_formats import PathTable, read_path_table
from coma.shards.sources.splits import SplitRules, last_split_in
from coma.shards.sources.tables.paths import IS_URL, PathFinder
from coma.shards.sources.tables.split_columns import warn_of_held_out

log = logging.getLogger(__name__)


def holds_images(file: Path) -> bool:
    """Whether a parquet file has images inside rather than paths. Raises DataError if it cannot be read."""
    with SandboxedReader() as reader:
        return bool(image_columns(reader.contents(file)))


def list_paths(
    source: Path,
    path_column: str | None = None,
    label_column: str | None = None,
    root: Path | None = None,
    progress: Callable[[int], None] | None = None,
    rules: SplitRules | None = None,
) -> SourceListing:
    """List the files that a .csv, .tsv, .txt or .parquet file names; they lie in `root`, or beside the list.

    All are taken for images, whatever their extensions. Paths that lead out of the root, are missing or were named
    before are refused. The split is what `rules` say, else a column, the list's own name, or the images' folders.
    Raises UsageError if a flag is needed to choose a column, DataError if the list is damaged or none of its files
    is there.
    """
    table = read_path_table(source, path_column, label_column)
    own_folder = root is None
    root = source.parent if root is None else root
    if not table.paths:
        log.warning("%s lists no images: it has no rows", source)
        return SourceListing(root, "list", (), None)
    if not any(map(str.strip, table.paths)):
        raise DataError(
            f"the column of paths is empty in all {len(table.paths):,} rows of {source}; name another one with "
            "--image-column"
        )
    listing = _list_files(table, root, progress)
    if own_folder and _all_elsewhere(listing) and source.is_symlink():
        root = source.resolve().parent  # of a list that is itself reached by a link
        listing = _list_files(table, root, progress)
    if all(reason == IS_URL for reason in map(listing.refused.get, range(len(listing)))):
        raise DataError(f"{source} names URLs, and nothing is downloaded; download the images and list their paths")
    if _all_elsewhere(listing):
        raise DataError(
            f"none of the {len(listing):,} files that {source} names is in {root} "
            f"({printable(listing.paths[0])} is {listing.refused[0].partition(':')[0]}); say with --root which "
            "folder its paths are in"
        )
    members = _members(source, table, listing, rules)
    values = {split: [table.labels[i] for i in rows] for split, rows in members.items()}
    set_aside = {split: {at for at, i in enumerate(rows) if i in listing.refused} for split, rows in members.items()}
    numbered = number_labels(source, values, table.class_names, set_aside)
    class_names = numbered.class_names
    if class_names is None and table.names is not None:
        names = table.names
        class_names = names_beside(
            {split: values[split] for split, column in numbered.labels.items() if column is not None},
            {split: [names[i] for i in rows] for split, rows in members.items()},
        )
    splits = listing.splits(members, numbered.labels)
    return SourceListing(root, "list", splits, class_names, splits_are_told=table.splits is not None)


def _list_files(table: PathTable, root: Path, progress: Callable[[int], None] | None) -> ListingBuilder:
    listing = ListingBuilder(progress)
    finder = PathFinder(root)
    label_of: dict[str, Label] = {}
    contradictions = 0
    for number, (text, label) in enumerate(zip(table.paths, table.labels, strict=True), start=1):
        file = finder.find(text, number)
        refused = file.refused
        if refused is None and file.path in label_of:
            refused = "duplicate: listed twice"
            if label_of[file.path] != label:
                refused = "duplicate: listed twice, with different labels"
                contradictions += 1
        label_of.setdefault(file.path, label)
        listing.add(file.path, file.size, file.mtime_ns, refused=refused)
    if contradictions:
        log.warning(
            "rows that name an image again with a different label: %s; the first label is kept, as an image has one",
            f"{contradictions:,}",
        )
    if finder.respelled:
        log.info(
            "files that are called otherwise in the list than on the disk: %s, such as %s for %s",
            f"{finder.respelled:,}",
            *map(printable, finder.example),
        )
    return listing


def _all_elsewhere(listing: ListingBuilder) -> bool:
    """Whether none of the files is in the root."""
    elsewhere = ("outside the source:", "missing:")
    return all(listing.refused.get(i, "").startswith(elsewhere) for i in range(len(listing)))


def _members(source: Path, table: PathTable, listing: ListingBuilder, rules: SplitRules | None) -> dict[str, list[int]]:
    """Group images by split."""
    said = split_from_name(source.stem)
    if rules is not None or (table.splits is None and last_split_in(source.stem) is None):
        return splits_by_folders(listing, rules)
    if table.splits is None:
        return {said: list(range(len(table.paths)))}
    warn_of_held_out(source.name, said, table.splits)
    members: dict[str, list[int]] = {}
    for i, split in enumerate(table.splits):
        members.setdefault(split, []).append(i)
    return members
