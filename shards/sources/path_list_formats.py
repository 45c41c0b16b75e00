"""File formats of path lists: CSV, TSV, lines of text or parquet → paths, labels and splits as they are written."""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from coma.errors import DataError, UsageError
from coma.shards.images.foreign import HEAD_BYTES, foreign_file
from coma.shards.sources.labels import Label, find_column
from coma.shards.sources.listing import is_image_name, printable
from coma.shards.sources.parquet.sandbox import SandboxedReader

_PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img")
_LABELS = ("label", "labels", "class", "class_name", "target", "category")
_NAMES = ("class_name", "class", "category", "label_name")
_MAX_LINE_BYTES = 1 << 20
_MAX_COLUMNS = 1000
_INTEGER = re.compile(r"(-?[0-9]{1,18})(?:\.0*)?")  # pandas writes 3.0 where others of the column are missing


@dataclass(frozen=True)
class PathTable:
    """Contents of a list; n images."""

    paths: list[str]
    """[n] as written; "" where it is missing."""
    labels: list[Label]
    """[n] all integers, or all text, except for missing ones."""
    names: list[str] | None
    """[n] class names beside integer labels, if there is such a column."""
    splits: list[str] | None
    """[n] as written."""
    class_names: tuple[str, ...] | None = None
    """Names of integer labels, if the file's metadata have them."""


@dataclass(frozen=True)
class _Columns:
    path: str
    label: str | None
    name: str | None
    split: str | None

    @staticmethod
    def choose(source: Path, header: Sequence[str], path: str | None, label: str | None) -> "_Columns":
        """Choose the columns asked for, else those with usual names. Raises UsageError."""
        columns = ", ".join(map(printable, header[:8])) + (", ..." if len(header) > 8 else "")
        for flag, column in (("--image-column", path), ("--label-column", label)):
            if column is not None and column not in header:
                raise UsageError(f"{flag} {column}: {source} has no such column (there are {columns})")
        path = path if path is not None else find_column(_PATHS, header)
        if path is None:
            raise UsageError(f"{source} has no column of paths ({columns}); name a column of paths with --image-column")
        rest = [column for column in header if column != path]
        label = label if label is not None else find_column(_LABELS, rest)
        name = find_column(_NAMES, [column for column in rest if column != label])
        return _Columns(path, label, name if label is not None else None, find_column(("split",), rest))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns to read."""
        columns = (self.path, self.label, self.name, self.split)
        return tuple(column for column in columns if column is not None)

    def table(self, values: dict[str, list[str]], class_names: tuple[str, ...] | None = None) -> PathTable:
        """Return the values of the chosen columns as a table."""
        paths = values[self.path]
        return PathTable(
            paths,
            [None] * len(paths) if self.label is None else parse_labels(values[self.label]),
            None if self.name is None else values[self.name],
            None if self.split is None else values[self.split],
            class_names,
        )


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
    """Return labels as integers if none is anything else, otherwise as text; None where a label is missing."""
    stripped = [text.strip() for text in texts]
    integers = {text: _INTEGER.fullmatch(text) for text in set(stripped) if text}
    if all(integers.values()):
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
        if header and is_image_name(header[0]):
            if len(header) > 3:
                raise UsageError(f"{source} has {len(header)} columns, no header; name them in a first line")
            rows = chain([header], reader)
            header = ["path", "label", "split"][: len(header)]
        header = [cell.strip() for cell in header]
        chosen = _Columns.choose(source, header, path_column, label_column)
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
            not is_image_name(text) and (is_image_name(head.rstrip()) or _INTEGER.fullmatch(tail) is not None)
        )
        paths.append(head.rstrip() if labelled else text)
        labels.append(tail if labelled else "")
    return PathTable(paths, parse_labels(labels), None, None)


def _read_parquet(source: Path, path_column: str | None, label_column: str | None) -> PathTable:
    with SandboxedReader() as reader:
        contents = reader.contents(source)
        texts = [name for name, kind in contents.kinds.items() if kind == "text"]
        usable = [*texts, *(name for name, kind in contents.kinds.items() if kind == "integer")]
        chosen = _Columns.choose(source, usable, path_column, label_column)
        if chosen.path not in texts:
            raise UsageError(
                f"{source} has no text in the column {chosen.path}; name a column of paths with --image-column"
            )
        values: dict[str, list[str]] = {name: [] for name in chosen.names}
        for rows in reader.rows(source, None, tuple(values)):
            for column, cells in zip(values.values(), rows.values, strict=True):
                column += ["" if cell is None else str(cell) for cell in cells]
    return chosen.table(values, contents.classes.get(chosen.label or ""))


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
