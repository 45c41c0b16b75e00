"""Lists of images as files: CSV, TSV, lines of text or parquet → paths, labels and splits, as they stand there."""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from coma.errors import DataError, UsageError
from coma.shards.sources.model import is_image_name, printable
from coma.shards.sources.parquet.confined import ConfinedReader
from coma.shards.sources.tables import Label, first_of

_PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img")
_LABELS = ("label", "labels", "class", "class_name", "target", "category")
_NAMES = ("class_name", "class", "category", "label_name")
_MAX_LINE_BYTES = 1 << 20
_MAX_COLUMNS = 1000
_INTEGER = re.compile(r"(-?[0-9]{1,18})(?:\.0*)?")  # pandas writes 3.0 where others of the column are missing


@dataclass(frozen=True)
class Entries:
    """What a list says; n images."""

    paths: list[str]
    """[n] as they stand there; "" where there is none."""
    labels: list[Label]
    """[n] all integers, or none."""
    names: list[str] | None
    """[n] what the class is called, if that is said beside an integer label."""
    splits: list[str] | None
    """[n] as they stand there."""
    class_names: tuple[str, ...] | None = None
    """What integer labels mean, where the file's metadata say so."""


@dataclass(frozen=True)
class _Columns:
    path: str
    label: str | None
    name: str | None
    split: str | None

    @staticmethod
    def chosen(source: Path, header: Sequence[str], path: str | None, label: str | None) -> "_Columns":
        """Choose by what is asked for, else by the usual names. Raises UsageError."""
        there = ", ".join(map(printable, header[:8])) + (", ..." if len(header) > 8 else "")
        for flag, column in (("--image-column", path), ("--label-column", label)):
            if column is not None and column not in header:
                raise UsageError(f"{flag} {column}: {source} has no such column (there are {there})")
        path = path if path is not None else first_of(_PATHS, header)
        if path is None:
            raise UsageError(
                f"{source} has no column of paths (there are {there}); say which with --image-column"
            )
        rest = [column for column in header if column != path]
        label = label if label is not None else first_of(_LABELS, rest)
        name = first_of(_NAMES, [column for column in rest if column != label])
        return _Columns(path, label, name if label is not None else None, first_of(("split",), rest))

    @property
    def names(self) -> tuple[str, ...]:
        """All that are read."""
        columns = (self.path, self.label, self.name, self.split)
        return tuple(column for column in columns if column is not None)

    def entries(self, columns: dict[str, list[str]], class_names: tuple[str, ...] | None = None) -> Entries:
        """Take what was chosen."""
        none: list[Label] = [None] * len(columns[self.path])
        labels = none if self.label is None else as_labels(columns[self.label])
        return Entries(
            columns[self.path],
            labels,
            columns[self.name] if self.name is not None else None,
            columns[self.split] if self.split is not None else None,
            class_names,
        )


def read_entries(source: Path, path_column: str | None, label_column: str | None) -> Entries:
    """Read a list. Raises UsageError if it takes a flag to tell the columns, DataError if it is damaged."""
    if not source.is_file():
        raise DataError(f"{source} is not a regular file")
    reader = _READERS.get(source.suffix.lower())
    if reader is None:
        raise UsageError(f"{source} is not a list by its name; lists end in {', '.join(_READERS)}")
    try:
        return reader(source, path_column, label_column)
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror}") from error


def as_labels(texts: Sequence[str]) -> list[Label]:
    """Labels as integers if all that are there are integers; None where there is none."""
    stripped = [text.strip() for text in texts]
    integers = {text: _INTEGER.fullmatch(text) for text in set(stripped) if text}
    if all(integers.values()):
        values = {text: int(found[1]) for text, found in integers.items() if found is not None}
        return [values.get(text) for text in stripped]
    return [text or None for text in stripped]


def _from_csv(source: Path, path_column: str | None, label_column: str | None) -> Entries:
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
                raise UsageError(
                    f"{source} has {len(header)} columns and no header; name them in a first line"
                )
            rows = chain([header], reader)
            header = ["path", "label", "split"][: len(header)]
        header = [cell.strip() for cell in header]
        chosen = _Columns.chosen(source, header, path_column, label_column)
        found: dict[str, list[str]] = {name: [] for name in chosen.names}
        places = [(header.index(name), column) for name, column in found.items()]
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
    return chosen.entries(found)


def _from_text(source: Path, path_column: str | None, label_column: str | None) -> Entries:
    """Read a path a line, or a path and a label as Caffe has them."""
    for flag, column in (("--image-column", path_column), ("--label-column", label_column)):
        if column is not None:
            raise UsageError(f"{flag} {column}: {source} is lines of text, and has no columns")
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
    return Entries(paths, as_labels(labels), None, None)


def _from_parquet(source: Path, path_column: str | None, label_column: str | None) -> Entries:
    with ConfinedReader() as reader:
        contents = reader.contents(source)
        texts = [name for name, kind in contents.kinds.items() if kind == "text"]
        usable = [*texts, *(name for name, kind in contents.kinds.items() if kind == "integer")]
        chosen = _Columns.chosen(source, usable, path_column, label_column)
        if chosen.path not in texts:
            raise UsageError(
                f"{source} has no text in the column {chosen.path}; say with --image-column which has"
            )
        found: dict[str, list[str]] = {name: [] for name in chosen.names}
        for rows in reader.rows(source, None, tuple(found)):
            for column, values in zip(found.values(), rows.values, strict=True):
                column += ["" if value is None else str(value) for value in values]
    return chosen.entries(found, contents.classes.get(chosen.label or ""))


_READERS: dict[str, Callable[[Path, str | None, str | None], Entries]] = {
    ".csv": _from_csv,
    ".tsv": _from_csv,
    ".txt": _from_text,
    ".parquet": _from_parquet,
}


def _lines(source: Path) -> Iterator[str]:
    """Yield the lines with their ends; none is read that is longer than the limit."""
    with source.open("rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > _MAX_LINE_BYTES:
                raise DataError(f"{source}, line {number}: longer than {_MAX_LINE_BYTES:,} bytes")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise DataError(
                    f"{source}, line {number}: not UTF-8 ({line[:40]!r}); save it as UTF-8"
                ) from None
