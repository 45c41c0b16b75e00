"""The records of a folder as one Markdown page, with a plot a part where there is something to plot."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.record import read_record
from coma.shards.files import write_atomically

REPORT_NAME = "report.md"
_MACHINE = (
    "gpu",
    "gpu_memory_gb",
    "driver_version",
    "power.limit",
    "torch",
    "cuda",
    "dali",
    "deepspeed",
    "timm",
    "python",
    "cores",
    "revision",
)


def write_report(out: Path) -> Path:
    """Write the page of all records in `out`; return its path."""
    found = [(part, record) for part in PARTS if (record := read_record(out, part.name)) is not None]
    lines = ["# What was measured", "", *_machines(found)]
    for part, record in found:
        lines += ["", *_section(out, part, record)]
    missing = [part.name for part in PARTS if part.name not in {found_part.name for found_part, _ in found}]
    if missing:
        lines += ["", f"Not run: {', '.join(missing)}."]
    write_atomically(out / REPORT_NAME, "\n".join(lines) + "\n")
    return out / REPORT_NAME


def _machines(found: Sequence[tuple[Part, Mapping[str, Any]]]) -> list[str]:
    """Return a line for each machine that made records, with its versions, and the commands."""
    made: dict[str, list[str]] = {}
    commands: dict[str, None] = {}
    for part, record in found:
        machine = record.get("machine") or {}
        text = ", ".join(f"{name} {machine[name]}" for name in _MACHINE if machine.get(name) is not None)
        made.setdefault(text or "not known", []).append(part.name)
        commands.setdefault(record.get("command") or "", None)
    rehearsed = any(record.get("device") == "cpu" or record.get("quick") for _, record in found)
    return [
        *(["**A rehearsal: figures of --quick or of a CPU say nothing of a GPU.**", ""] if rehearsed else []),
        *(f"- {text}: {', '.join(names)}" for text, names in made.items()),
        *(f"- `{command}`" for command in commands if command),
    ]


def _section(out: Path, part: Part, record: Mapping[str, Any]) -> list[str]:
    state = record.get("state", "failed")
    lines = [f"## {part.name}: {part.question}", ""]
    if state != "complete":
        reason = f": {record['reason']}" if record.get("reason") else ""
        lines += [f"**{state}**{reason}", ""]
    if record.get("rows"):
        lines += [*markdown_table(record["rows"]), ""]
    lines += [f"- {note}" for note in record.get("notes", [])]
    lines.append(f"- {record.get('elapsed_s', 0):.0f} s")
    if record.get("bars"):
        plot = out / f"{part.name}.png"
        try:
            _plot(plot, record)
        except Exception as error:  # a plot is no reason to lose the table
            lines.append(f"- no plot: {type(error).__name__}: {error}")
        else:
            lines += ["", f"![{record['bars']['title']}]({plot.name})"]
    return lines


def _plot(path: Path, record: Mapping[str, Any]) -> None:
    from coma.bench.plot import write_bars

    machine, bars = record.get("machine") or {}, record["bars"]
    note = ", ".join(str(machine[name]) for name in ("gpu", "torch", "cuda") if machine.get(name))
    write_bars(path, bars["title"], note, bars["values"], highlighted={n for n in bars["values"] if "coma" in n})


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lay rows out as a table, with a column for each name that any of them has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [
        f"| {' | '.join(name.replace('_', ' ') for name in names)} |",
        f"|{'---|' * len(names)}",
        *(f"| {' | '.join(_cell(row.get(name)) for name in names)} |" for row in rows),
    ]


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("|", "\\|")
