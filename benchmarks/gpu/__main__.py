"""Everything that is unknown on a GPU, in parts of at most four minutes each.

    python -m benchmarks.gpu [PARTS] --data SHARDS --out DIR

DIR gets a record, a log and a plot a part, and report.md. A part whose record is complete is not run again, and one
that was cut off goes on with what is missing, so that the same command may be typed again after any interruption.
"""

import signal
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.gpu.parts import PARTS, Part, chosen
from benchmarks.gpu.process import environment, run_part
from benchmarks.gpu.record import Setting, read_record, record_path
from benchmarks.gpu.report import write_report
from coma.errors import ComaError, UsageError, shell_command

_IMAGES, _QUICK_IMAGES = 2048, 24
_QUICK_SCALE = 0.2
_HAS_GPU = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 1)"


class Device(StrEnum):
    """What is measured."""

    cuda = "cuda"
    cpu = "cpu"


def measure(
    parts: Annotated[list[str] | None, typer.Argument(help="Parts to run; --list names them.", metavar="PARTS")] = None,
    data: Annotated[
        str | None, typer.Option(help="Data set made by `coma shard`; without it, images are drawn.", metavar="SHARDS")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results.", metavar="DIR")] = None,
    device: Annotated[Device, typer.Option(help="cpu: a rehearsal.")] = Device.cuda,
    quick: Annotated[bool, typer.Option(help="Everything as small as can be, for a rehearsal.")] = False,
    budget_s: Annotated[float, typer.Option(min=1, help="Seconds that a part may take.")] = 240.0,
    again: Annotated[bool, typer.Option("--again", help="Run parts that are complete, too.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Name the parts, and leave.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Write report.md from what is there, and leave.")] = False,
) -> None:
    """Measure what only a GPU can answer, a part at a time."""
    try:
        if listed:
            for part in PARTS:
                typer.echo(f"{part.name:<8} {part.minutes:>4g} min  {part.question}")
            return
        if out is None:
            raise UsageError("--out is missing: name the folder of the results")
        if report and not any(record_path(out, part.name).is_file() for part in PARTS):
            raise UsageError(f"--out {out} holds no results: name the folder that an earlier command wrote to")
        if not report:
            out, wanted = out.absolute(), chosen(parts or [])
            setting = _setting(data, out, device.value, quick, budget_s)
            done = [_run(part, setting, again=again) for part in wanted]
        typer.echo(f"report    {write_report(out)}")
    except ComaError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    if not report and not all(done):
        raise typer.Exit(1)


def _setting(data: str | None, out: Path, device: str, quick: bool, budget_s: float) -> Setting:
    """Make the folder, check that its results are of the same kind, and draw images where no data are given."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}; name a folder that can be written") from None
    place = str(out / "drawn" / "shards") if data is None else data if "://" in data else str(Path(data).absolute())
    command = shell_command("python", "-m", "benchmarks.gpu", *sys.argv[1:])
    setting = Setting(place, str(out), device, quick, budget_s, command)
    for part in PARTS:
        before = read_record(out, part.name)
        for name, value in setting.identity().items():
            if before is not None and before.get(name) != value:
                raise UsageError(
                    f"{record_path(out, part.name)} was measured with {name} {before.get(name)}, not {value}: "
                    "name another --out"
                )
    if device == "cuda" and subprocess.run([sys.executable, "-c", _HAS_GPU], env=environment(setting)).returncode:
        raise UsageError("torch finds no GPU here: see nvidia-smi, or rehearse with --device cpu --quick")
    if data is None:
        from benchmarks.gpu.images import drawn

        drawn(out / "drawn", *((_QUICK_IMAGES, _QUICK_SCALE) if quick else (_IMAGES, 1.0)))
    return setting


def _run(part: Part, setting: Setting, *, again: bool) -> bool:
    """Run a part unless its record is there; whether there is nothing left to do for it."""
    out = Path(setting.out)
    record = read_record(out, part.name)
    if again:
        record_path(out, part.name).unlink(missing_ok=True)
    elif record is not None and record.get("state") == "complete":
        typer.echo(f"{part.name:<8}  done before; --again runs it again")
        return True
    typer.echo(f"{part.name:<8}  {part.question}")
    record = run_part(part, setting)
    state, reason = record["state"], record.get("reason")
    failed = sum("failed" in row for row in record["rows"])
    rows = f"{len(record['rows'])} rows{f', {failed} of them failed' if failed else ''}"
    rows += f", {record.get('elapsed_s', 0):.0f} s"
    typer.echo(f"{part.name:<8}  {state}, {rows}{f': {reason}' if reason else ''}")
    return state in ("complete", "skipped")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the part's process is ended too
    typer.run(measure)
