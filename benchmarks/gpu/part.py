"""A part at work: what it has measured so far, in a record that is on disk after every row."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.record import Row, Setting, read_record, write_record

_WRITING = 0.05  # part of the budget that is kept for the end


class Measuring:
    """The record of a part while it is measured; what an earlier try measured is in it already.

    Args:
        part: name of the part.
        setting: that of the command.
        scratch: an empty folder that is removed in the end.
        machine: what `benchmarks.gpu.machine.describe` says.
    """

    def __init__(self, part: str, setting: Setting, scratch: Path, machine: Mapping[str, Any]) -> None:
        self.part, self.scratch = part, scratch
        self.data, self.out, self.quick = Path(setting.data), Path(setting.out), setting.quick
        self.device = torch.device(setting.device, 0) if setting.device == "cuda" else torch.device("cpu")
        before = read_record(self.out, part) or {}
        # A step that does not fit will not fit the next time either; what else failed is tried again.
        kept = (row for row in before.get("rows", []) if "failed" not in row or row.get("fits") is False)
        self.rows: list[Row] = list(kept)
        self._record: dict[str, Any] = {
            "part": part,
            "state": "begun",
            **setting.identity(),
            "command": setting.command,
            "machine": dict(machine),
            "elapsed_s": before.get("elapsed_s", 0.0),
            "rows": self.rows,
            "notes": [],
            "bars": None,
            "series": before.get("series", {}),
        }
        self._before_s = self._record["elapsed_s"]
        self._began_s = time.monotonic()
        self._ends_s = self._began_s + setting.budget_s * (1 - _WRITING)
        self._missing: list[str] = []
        self.write()

    @property
    def on_gpu(self) -> bool:
        """Whether this is no rehearsal."""
        return self.device.type == "cuda"

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return max(0.0, self._ends_s - time.monotonic())

    def has(self, **key: Any) -> bool:
        """Whether a row with these values has been measured."""
        return self.row(**key) is not None

    def row(self, **key: Any) -> Row | None:
        """Return the first row with these values."""
        return next((row for row in self.rows if all(row.get(name) == value for name, value in key.items())), None)

    def add(self, **row: str | int | float | bool | None) -> Row:
        """Add a row, and write the record."""
        self.rows.append(row)
        self.write()
        return row

    def put(self, key: Row, **values: str | int | float | bool | None) -> None:
        """Change the row with these values, or add it, and write the record."""
        row = self.row(**key)
        if row is None:
            self.add(**key, **values)
        else:
            row.update(values)
            self.write()

    def note(self, text: str) -> None:
        """Add a line that stands below the table."""
        self._record["notes"].append(text)
        self.write()

    def bars(self, title: str, values: Mapping[str, float]) -> None:
        """Say what the plot shows."""
        self._record["bars"] = {"title": title, "values": dict(values)}
        self.write()

    def series(self, name: str, values: list[float]) -> None:
        """Keep a long list of figures, which no table shows."""
        self._record["series"][name] = values
        self.write()

    def time_for(self, what: str, needed_s: float = 0.0) -> bool:
        """Whether the budget allows for `needed_s` more; if not, `what` is what the next try has to measure."""
        if self.left_s > needed_s:
            return True
        self._missing.append(what)
        return False

    def rounds(self, most: int, least: int = 1) -> Iterator[int]:
        """Count rounds up to `most`, and after `least` no further than the budget seems to allow."""
        for number in range(most):
            began_s = time.monotonic()
            yield number
            took_s = time.monotonic() - began_s
            if least <= number + 1 < most and took_s > self.left_s:
                self.note(f"{number + 1} rounds of {most}: the budget of time was used up")
                return

    def skip(self, reason: str) -> None:
        """Say why there is nothing to measure here."""
        self._record["state"], self._record["reason"] = "skipped", reason
        self.write()

    def end(self) -> None:
        """Write the record for the last time."""
        if self._missing:
            missing = ", ".join(dict.fromkeys(self._missing))
            self._record |= {"state": "partial", "reason": f"budget of time used up, missing: {missing}"}
        elif self._record["state"] == "begun":
            self._record["state"] = "complete"
        self.write()

    def write(self) -> None:
        """Write the record."""
        self._record["elapsed_s"] = self._before_s + time.monotonic() - self._began_s
        write_record(self.out, self.part, self._record)
