"""Layout `parquet`: Hugging Face parquet files with the images inside.

An image is named `<parquet file>/<row>` with the extension of its row's path, because these paths need be neither
unique nor safe. Only if all paths are those of ImageNet-1k are its images named as in its other layouts.
"""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coma.errors import DataError
from coma.shards.sources.folders import files_below
from coma.shards.sources.kinds import is_image_name
from coma.shards.sources.labels import (
    Label,
    as_labels,
    labels_of_column,
    named,
    names_beside,
    number_labels,
)
from coma.shards.sources.listing import (
    MAX_IMAGE_BYTES,
    ListingBuilder,
    PassedOver,
    SourceListing,
    SplitListing,
    printable,
)
from coma.shards.sources.parquet.columns import Columns, choose_columns
from coma.shards.sources.parquet.read import Contents
from coma.shards.sources.parquet.sandbox import SandboxedReader
from coma.shards.sources.splits import UNRULED, SplitRules, last_split_in
from coma.shards.sources.tables.label_columns import KINDS
from coma.shards.sources.tables.split_columns import splits_of_rows, warn_of_held_out

log = logging.getLogger(__name__)

_IMAGENET_PATH = re.compile(
    r"(?P<train>(?P<of_train>n\d{8})_\d+)(_(?P=of_train))?\.JPEG"
    r"|(?P<val>ILSVRC2012_val_\d{8})_(?P<of_val>n\d{8})\.JPEG"
    r"|(?P<test>ILSVRC2012_test_\d{8})\.JPEG"
)


@dataclass(frozen=True)
class _Table:
    """One file of n rows."""

    file: str
    mtime_ns: int
    sizes: npt.NDArray[np.int64]
    """[n] bytes, -1 for a null."""
    inner_paths: list[str | None]
    """[n] path of the image that the row gives."""
    values: dict[str, list[object]]
    """Column of labels, their names or splits → what it holds [n], None where it is missing."""

    def refusals(self) -> Iterator[str | None]:
        """Yield for each row why it is set aside unread, or None."""
        for size, path in zip(self.sizes.tolist(), self.inner_paths, strict=True):
            if size > MAX_IMAGE_BYTES:
                yield f"bomb: {size} bytes, the limit is {MAX_IMAGE_BYTES}"
            elif size < 0:
                elsewhere = "; it names a file, which is not followed" if path else ""
                yield f"empty: the row has no bytes{elsewhere}"
            else:
                yield None


def list_parquet(
    source: Path,
    image_column: str | None = None,
    label_column: str | None = None,
    progress: Callable[[int], None] | None = None,
    exclude: Path | None = None,
    rules: SplitRules | None = None,
    only_split: str = "train",
) -> SourceListing:
    """List the images in a parquet file, or in all those of a folder (except for the folder `exclude`).

    Their offsets are row numbers: they have to be spooled before they can be read. The files are read whole, to know
    the sizes of all images; `progress` is called with the number of images so far.
    Raises UsageError if a flag is needed to choose a column, DataError if a file cannot be read.
    """
    root, files, passed_over = source.parent, [source.name], PassedOver()
    if source.is_dir():
        root, (files, passed_over) = source, files_below(source, ".parquet", exclude)
    tables: list[_Table] = []
    rows = 0
    with SandboxedReader() as reader:
        contents = {file: reader.contents(root / file) for file in files}
        columns = choose_columns(contents, image_column, label_column)
        for file in files:
            if columns.image not in contents[file].kinds:
                log.warning("left out %s: there are no images in it", printable(file))
                passed_over.add(file, ".parquet without images", (root / file).stat().st_size)
                continue
            table = _read_table(reader, root, file, contents[file], columns)
            if not len(table.sizes):
                log.warning("%s has no rows", printable(file))
                continue
            tables.append(table)
            rows += len(table.sizes)
            if progress is not None:
                progress(rows)
    class_words, told = None, True
    labels = _labels(source, tables, columns, label_column is not None)
    if (names := _imagenet_names(tables)) is not None:
        splits, class_names, class_words = _imagenet(source, tables, labels, columns.class_names, names)
    else:
        of_rows, told = _splits(source, tables, columns, rules, only_split)
        splits, class_names = _generic(source, tables, labels, columns, of_rows)
    return SourceListing(root, "parquet", splits, class_names, class_words, passed_over, told, columns.image)


def _read_table(reader: SandboxedReader, root: Path, file: str, contents: Contents, columns: Columns) -> _Table:
    wanted = (columns.path, columns.labels.label, columns.labels.names, *columns.splits)
    present = tuple(dict.fromkeys(name for name in wanted if contents.kinds.get(name or "") in KINDS))
    sizes: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
    values: dict[str, list[object]] = {name: [] for name in present if name is not None}
    mtime_ns = (root / file).stat().st_mtime_ns
    for rows in reader.rows(root / file, columns.image, tuple(values)):
        sizes.append(rows.lengths)
        for column, cells in zip(values.values(), rows.values, strict=True):
            column += cells
    missing: list[object] = [None] * sum(map(len, sizes))
    for name in columns.splits:
        values[name] = named(values.get(name, missing), contents.classes.get(name))
    inner_paths = [path if isinstance(path, str) else None for path in values.get(columns.path or "", missing)]
    return _Table(file, mtime_ns, np.concatenate(sizes), inner_paths, values)


def _column(tables: list[_Table], name: str | None) -> list[object]:
    """Return the values of a column in the rows of all tables, None in those that do not have it."""
    return [value for table in tables for value in table.values.get(name or "", [None] * len(table.sizes))]


def _labels(source: Path, tables: list[_Table], columns: Columns, asked: bool) -> list[Label]:
    """Return the labels of all rows of all tables."""
    values = _column(tables, columns.labels.label)
    return labels_of_column(
        printable(str(source)), columns.labels.label or "", lambda: as_labels(values), len(values), asked
    )


def _splits(
    source: Path, tables: list[_Table], columns: Columns, rules: SplitRules | None, only_split: str
) -> tuple[list[str | None], bool]:
    """Return the splits of all rows, and whether something else than the files' names says them.

    They are what `rules` say (None where they say none), else a column, the files' names, or `only_split`.
    """
    of_files = [
        (last_split_in(table.file) or only_split) if rules is None else rules.split_of_file(table.file)
        for table in tables
    ]
    by_file = [split for split, table in zip(of_files, tables, strict=True) for _ in range(len(table.sizes))]
    if rules is not None:
        return by_file, True
    splits = splits_of_rows(printable(str(source)), {name: _column(tables, name) for name in columns.splits})
    if splits is None:
        return by_file, False
    at = 0
    for split, table in zip(of_files, tables, strict=True):
        warn_of_held_out(table.file, split or "train", splits[at : at + len(table.sizes)])
        at += len(table.sizes)
    return list(splits), True


def _generic(
    source: Path, tables: list[_Table], labels: list[Label], columns: Columns, of_rows: list[str | None]
) -> tuple[tuple[SplitListing, ...], tuple[str, ...] | None]:
    names = (
        f"{table.file}/{row:09d}{_extension(path)}" for table in tables for row, path in enumerate(table.inner_paths)
    )
    listing = _listing(tables, names)
    members: dict[str, list[int]] = {}
    for i, split in enumerate(of_rows):
        members.setdefault(split or "train", []).append(i)
        if split is None:
            listing.refused.setdefault(i, UNRULED)
    values = {split: [labels[i] for i in rows] for split, rows in members.items()}
    set_aside = {split: {at for at, i in enumerate(rows) if i in listing.refused} for split, rows in members.items()}
    numbered = number_labels(printable(str(source)), values, columns.class_names, set_aside)
    class_names = numbered.class_names
    if class_names is None and columns.labels.names is not None:
        words = [str(word or "").strip() or None for word in _column(tables, columns.labels.names)]
        class_names = names_beside(
            {split: values[split] for split, column in numbered.labels.items() if column is not None},
            {split: [words[i] for i in rows] for split, rows in members.items()},
        )
    return listing.splits(members, numbered.labels), class_names


def _imagenet(
    source: Path,
    tables: list[_Table],
    labels: list[Label],
    given_names: tuple[str, ...] | None,
    names: Sequence[tuple[str, str | None, str]],
) -> tuple[tuple[SplitListing, ...], tuple[str, ...] | None, tuple[str, ...] | None]:
    log.info("the images have the paths of ImageNet, and keep its names")
    listing = _listing(tables, (path for _, _, path in names))
    label_of: dict[str, Label] = {}
    for label, (_, wnid, path) in zip(labels, names, strict=True):
        if wnid is not None and label not in (None, -1) and label_of.setdefault(wnid, label) != label:
            raise DataError(f"{source}: {path} has the label {label}, others of {wnid} have {label_of[wnid]}")
    wnid_of = {label: wnid for wnid, label in label_of.items()}
    for wnid, label in label_of.items():
        if wnid_of[label] != wnid:
            raise DataError(f"{source}: images of {wnid} and of {wnid_of[label]} have one label, {label}")
    class_names = tuple(sorted({wnid for _, wnid, _ in names if wnid is not None}))
    index = {wnid: i for i, wnid in enumerate(class_names)}
    members: dict[str, list[int]] = {}
    for i, (split, _, _) in enumerate(names):
        members.setdefault(split, []).append(i)
    numbers = {
        split: None if split == "test" else [index[names[i][1] or ""] for i in rows] for split, rows in members.items()
    }
    class_words = None
    if given_names is not None and class_names:
        word_of = dict(enumerate(given_names))
        words = {wnid: word_of.get(label) for wnid, label in label_of.items() if isinstance(label, int)}
        class_words = tuple(words.get(wnid) or wnid for wnid in class_names)
    return listing.splits(members, numbers), class_names or None, class_words


def _imagenet_names(tables: list[_Table]) -> list[tuple[str, str | None, str]] | None:
    """Return split, wnid and name of every image, or None if any path is not one of ImageNet's."""
    names = []
    for table in tables:
        for path in table.inner_paths:
            if (name := _imagenet_name(path)) is None:
                return None
            names.append(name)
    return names or None


def _imagenet_name(path: str | None) -> tuple[str, str | None, str] | None:
    """Return split, wnid and name of an image of ImageNet-1k from its path in Hugging Face's copy."""
    match = _IMAGENET_PATH.fullmatch(path) if path is not None else None
    if match is None:
        return None
    if match["test"] is not None:
        return "test", None, f"test/{match['test']}.JPEG"
    split, wnid = ("train", match["of_train"]) if match["train"] is not None else ("val", match["of_val"])
    return split, wnid, f"{split}/{wnid}/{match[split]}.JPEG"


def _listing(tables: list[_Table], names: Iterable[str]) -> ListingBuilder:
    listing = ListingBuilder()
    seen: set[str] = set()
    name = iter(names)
    for table in tables:
        for row, (size, refused) in enumerate(zip(table.sizes.tolist(), table.refusals(), strict=True)):
            path = next(name)
            if path in seen:
                refused = refused or "duplicate: listed twice"
            seen.add(path)
            listing.add(path, size, table.mtime_ns, table.file, row, refused)
    return listing


def _extension(path: str | None) -> str:
    return os.path.splitext(path)[1] if path is not None and is_image_name(path) else ""  # noqa: PTH122
