"""Files of JSON lines (metrics.jsonl, ledger.jsonl, nonfinite.jsonl): read, append, cut.

A process that is killed while it writes leaves half a last line. Readers leave it out; the next append replaces it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from coma.errors import DataError
from coma.shards.files import write_atomically


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    record = _parsed(_read(path))
    if record is None:
        raise DataError(f"{path} is damaged: it is not JSON, or no object")
    return record


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read all lines but half a last one; none if there is no file.

    Raises:
        DataError: the file cannot be read, or another line is not JSON.
    """
    if not path.exists():
        return []
    lines = _read(path).splitlines(keepends=True)
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if (record := _parsed(line)) is not None:
            records.append(record)
        elif number < len(lines) or line.endswith(b"\n"):
            raise DataError(f"{path} line {number} is not JSON: it is damaged, take that line out")
    return records


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None


def _parsed(text: bytes | str) -> dict[str, Any] | None:
    """Return the JSON object that a text is; None if it is none."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):  # the latter of brackets that open and open
        return None
    return record if isinstance(record, dict) else None


def readable_lines(path: Path, step: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield every JSON object that can be read, of one `step` or of all; none if there is no file that can be read."""
    number = "" if step is None else str(step)
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if number not in line:  # spares most of a long run's lines the parser
                continue
            record = _parsed(line)
            if record is not None and step in (None, record.get("step")):
                yield record


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append a line, in place of half a one that a crash left at the end.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("ab+") as file:
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(record).encode() + b"\n")


def cut_lines(path: Path, last_step: int) -> None:
    """Drop the lines of steps after `last_step`, and those that cannot be read. Raises DataError."""
    if not path.exists():
        return
    lines = _read(path).splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and _step_of(line) <= last_step]
    if len(kept) < len(lines):
        write_atomically(path, b"".join(kept))


def _step_of(line: bytes) -> float:
    step = (_parsed(line) or {}).get("step")
    return step if isinstance(step, int) else math.inf


def is_number(value: object) -> bool:
    """Whether a value of a JSON object is a number; Python would take true and false for 1 and 0."""
    return isinstance(value, int | float) and not isinstance(value, bool)
