"""Files of JSON lines (metrics.jsonl, ledger.jsonl, nonfinite.jsonl): read, append, cut.

A process that is killed while it writes leaves half a last line. Readers leave it out; the next append replaces it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coma.errors import DataError
from coma.shards.files import write_atomically


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read all lines but half a last one; none if there is no file.

    Raises:
        DataError: another line is not JSON.
    """
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise DataError(f"{path} line {number} is not JSON") from None
    return records


def readable_lines(path: Path, step: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield every JSON object that can be read, of one `step` or of all; none if there is no file."""
    if not path.is_file():
        return
    number = "" if step is None else str(step)
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if number not in line:  # spares most of a long run's lines the parser
                continue
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and step in (None, record.get("step")):
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
    """Drop the lines of steps after `last_step`, and those that cannot be read."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= last_step]
    if len(kept) < len(lines):
        write_atomically(path, "".join(kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
