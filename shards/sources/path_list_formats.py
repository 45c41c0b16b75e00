"""File formats of path lists: CSV, TSV, lines of text or parquet → paths, labels and splits as they are written."""

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from coma.errors import DataError, UsageError
from coma.shards.images.foreign import HEAD_BYTES, foreign_file
from coma.shards.sources.kinds import is_image_name
from coma.shards.sources.labels import SEVERAL_LABELS, Label, NotLabelsError, as_labels, labels_of_column, named
from coma.shards.sources.listing import printable
from coma.shards.sources.parquet.sandbox import SandboxedReader
from coma.shards.sources.tables.label_columns import LabelColumns, choose_label_columns, find_columns
from coma.shards.sources.tables.split_columns import split_columns, splits_of_rows

_PATHS = (
    *("path", "file", "filename", "filepath", "fname", "image", "imagepath", "imagefile", "imagefilename"),
    *("imagefilepath", "imagename", "img", "imgpath", "imgname", "filenames", "paths", "imageid", "imageurl", "url"),
)
_MAX_LINE_BYTES = 1 << 20
_MAX_COLUMNS = 1000
_LIST = re.compile(r"\[.*\]")
_LIST_ITEMS = re.compile(r"\"([^\"]*)\"|'([^']*)'|([^\s,\[\]\"']+)")
_MISSING = ("nan", "null", "none", "n/a", "na", "<na>")  # beside integers; elsewhere they are names
_INTEGER = re.compile(r"(-?[0-9]{1,18})(?:\.0*)?")  # pandas writes 3.0 where others of the column are missing


@dataclass(frozen=True)
class PathTable:
    """Contents of a list; n images."""

    paths: list[str]
    """[n] as written; "" where it is missing."""
    labels: list[Label]
    """[n] all integers, or all text, except for missing ones."""
    names: list[Label] | None
    """[n] class names beside integer labels, if there is such a column; None where one is missing."""
    splits: list[str] | None
    """[n] train, val or test, if a column says them."""
    class_names: tuple[str, ...] | None = None
    """Names of integer labels, if the file's metadata have them."""


@dataclass(frozen=True)
class _Columns:
    source: Path
    path: str
    labels: LabelColumns
    splits: tuple[str, ...]
    label_is_asked: bool

    @staticmethod
    def choose(
        source: Path, kinds: Mapping[str, str], path: str | None, label: str | None, classes: Sequence[str] = ()
    ) -> "_Columns":
        """Choose the columns asked for, else those with usual names; `kinds` is what each holds. Raises UsageError."""
        columns = ", ".join(map(printable, list(kinds)[:8])) + (", ..." if len(kinds) > 8 else "")
        if path is not None and path not in kinds:
            raise UsageError(f"--image-column {path}: {source} has no such column (there are {columns})")
        path = path if path is not None else next(iter(find_columns(_PATHS, kinds)), None)
        if path is None:
            raise UsageError(f"{source} has no column of paths ({columns}); name a column of paths with --image-column")
        if kinds[path] != "text":
            raise UsageError(f"{source} has no text in the column {path}; name a column of paths with --image-column")
        rest = {column: kind for column, kind in kinds.items() if column != path}
        splits = split_columns(printable(str(source)), rest)
        classes = [column for column in classes if column not in splits]
        labels = choose_label_columns(printable(str(source)), rest, label, classes)
        return _Columns(source, path, labels, splits, label is not None)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns to read."""
        columns = (self.path, self.labels.label, self.labels.names, *self.splits)
        return tuple(dict.fromkeys(column for column in columns if column is not None))

    def table(self, values: Mapping[str, Sequence[object]], class_names: tuple[str, ...] | None = None) -> PathTable:
        """Return the values of the chosen columns as a table."""
        paths = _texts(values[self.path])
        labels: list[Label] = [None] * len(paths)
        if self.labels.label is not None:
            column = values[self.labels.label]
            parsed = _texts(column) if all(value is None or isinstance(value, str) for value in column) else None
            labels = labels_of_column(
                printable(str(self.source)),
                self.labels.label,
                (lambda: as_labels(column)) if parsed is None else (lambda: parse_labels(parsed)),
                len(paths),
                self.label_is_asked,
            )
        names = None if self.labels.names is None else _texts(values[self.labels.names])
        return PathTable(
            paths,
            labels,
            None if names is None else [name.strip() or None for name in names],
            splits_of_rows(printable(str(self.source)), {column: values[column] for column in self.splits}),
            class_names,
        )


def _texts(values: Sequence[object]) -> list[str]:
    return ["" if value is None else str(value) for value in values]


def read_path_table(source: Path, path_column: str | None, label_column: str | None) -> PathTable:
    """Read a list. Raises UsageError if a flag is needed to choose a column, DataError if the list is damaged."""
    if not source.is_file():
        raise DataError(f"{source} is not a regular file")
    reader = _READERS.get(source.suffix.lower())
    if reader is None:
        raise UsageError(f"{source} is not a list of paths; the name of a list ends in {', '.join(_READERS)}")
    try:
        if reader is not _read_parquet:
            _require_text(source)
        return reader(source, path_column, label_column)
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror}") from error


def parse_labels(texts: Sequence[str]) -> list[Label]:
    """Return labels as integers if none is anything else, otherwise as text; None where a label is missing.

    If all are lists as JSON or Python writes them (`["cat"]`), their items are the labels. Raises NotLabelsError for
    lists of several.
    """
    stripped = [text.strip() for text in texts]
    given = set(filter(None, stripped))
    if given and all(_LIST.fullmatch(text) for text in given):
        items = {text: _LIST_ITEMS.findall(text) for text in given}
        if any(len(found) > 1 for found in items.values()):
            raise NotLabelsError(SEVERAL_LABELS)
        stripped = ["".join(items[text][0]) if items.get(text) else "" for text in stripped]
        given = set(filter(None, stripped))
    integers = {text: _INTEGER.fullmatch(text) for text in given if text.lower() not in _MISSING}
    if integers and all(integers.values()):
        values = {text: int(match[1]) for text, match in integers.items() if match is not None}
        return [values.get(text) for text in stripped]
    return [text or None for text in stripped]


def _read_csv(source: Path, path_column: str | None, label_column: str | None) -> PathTable:
    lines = _lines(source)
    first = next(lines, "")
    delimiter = "\t" if source.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        if len(header) > _MAX_COLUMNS:
            raise DataError(f"{source} has {len(header):,} columns; the limit is {_MAX_COLUMNS:,}")
        rows: Iterator[list[str]] = reader
        if header and is_image_name(header[0], arrays=True):
            if len(header) > 3:
                raise UsageError(f"{source} has {len(header)} columns, no header; name them in a first line")
            rows = chain([header], reader)
            header = ["path", "label", "split"][: len(header)]
        header = [cell.strip() for cell in header]
        chosen = _Columns.choose(source, dict.fromkeys(header, "text"), path_column, label_column)
        values: dict[str, list[str]] = {name: [] for name in chosen.names}
        places = [(header.index(name), column) for name, column in values.items()]
        for row in rows:
            if len(row) != len(header):
                if not row:
                    continue
                raise DataError(
                    f"{source}, line {reader.line_num}: {len(row)} columns where there should be {len(header)}; "
                    "quote what holds a separator"
                )
            for place, column in places:
                column.append(row[place])
    except csv.Error as error:
        raise DataError(f"{source}, line {reader.line_num}: {error}") from None
    return chosen.table(values)


def _read_text(source: Path, path_column: str | None, label_column: str | None) -> PathTable:
    """Read lines of one path each, optionally with a label after it, as in Caffe's lists."""
    for flag, column in (("--image-column", path_column), ("--label-column", label_column)):
        if column is not None:
            raise UsageError(f"{flag} {column}: {source} is lines of text, which have no named columns")
    paths: list[str] = []
    labels: list[str] = []
    for line in _lines(source):
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        head, separator, tail = text.rpartition("\t" if "\t" in text else " ")
        labelled = separator == "\t" or (
            not is_image_name(text, arrays=True)
            and (is_image_name(head.rstrip(), arrays=True) or _INTEGER.fullmatch(tail) is not None)
        )
        paths.append(head.rstrip() if labelled else text)
        labels.append(tail if labelled else "")
    return PathTable(paths, parse_labels(labels), None, None)


def _read_parquet(source: Path, path_column: str | None, label_column: str | None) -> PathTable:
    with SandboxedReader() as reader:
        contents = reader.contents(source)
        chosen = _Columns.choose(source, contents.kinds, path_column, label_column, tuple(contents.classes))
        values: dict[str, list[object]] = {name: [] for name in chosen.names}
        for rows in reader.rows(source, None, tuple(values)):
            for column, cells in zip(values.values(), rows.values, strict=True):
                column += cells
    for name in chosen.splits:
        values[name] = named(values[name], contents.classes.get(name))
    return chosen.table(values, contents.classes.get(chosen.labels.label or ""))


_READERS: dict[str, Callable[[Path, str | None, str | None], PathTable]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".txt": _read_text,
    ".parquet": _read_parquet,
}


def _require_text(source: Path) -> None:
    with source.open("rb") as file:
        foreign = foreign_file(file.read(HEAD_BYTES))
    if foreign is not None:
        raise DataError(f"{source} is {foreign}")


def _lines(source: Path) -> Iterator[str]:
    """Yield the lines with their line ends. Raises DataError for a line above the limit, which is not read whole."""
    with source.open("rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > _MAX_LINE_BYTES:
                raise DataError(f"{source}, line {number}: longer than {_MAX_LINE_BYTES:,} bytes")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise DataError(f"{source}, line {number}: not UTF-8 ({line[:40]!r}); save it as UTF-8") from None
