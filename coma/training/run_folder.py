"""Where a run goes: a new folder, or the one that the same command left unfinished."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from coma.errors import UsageError
from coma.runs.read import (
    CONFIG_NAME,
    FORMAT,
    MANIFEST_NAME,
    checkpoint_step,
    latest_checkpoint,
    other_format,
)
from coma.runs.report import REPORT_NAME
from coma.shards.files import without_credentials, write_atomically
from coma.training.config.options import RunConfig
from coma.training.config.resolve import ResolvedRun

DEFAULT_RUNS = Path("runs")
LEDGER_NAME = "ledger.jsonl"
LOCK_NAME = "lock"
_LIBRARIES = ("coma", "torch", "deepspeed", "timm", "nvidia-dali-cuda120", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """A folder for a run, and whether the run is begun or done already."""

    path: Path
    begun: bool = False
    finished: bool = False
    beside: str | None = field(default=None, compare=False)
    """Why the folder of the name before this one is not gone on with."""


def identity(config: RunConfig, resolved: ResolvedRun) -> dict[str, Any]:
    """Return what makes two commands the same run.

    On how many machines, by which ZeRO stage and how closely watched does not.
    """
    return {
        "format": FORMAT,
        **config.identity(),
        "--init's weights": resolved.init_digest,
        "the data's fingerprint": resolved.fingerprint,
        "the number of steps": resolved.steps,
        "the number of warm-up steps": resolved.warmup_steps,
        "the global batch": resolved.batch_size,
        "the precision": resolved.precision,
        "--ds-config's content": resolved.deepspeed.identity(),
    }


def choose_run(config: RunConfig, resolved: ResolvedRun) -> RunFolder:
    """Find the folder for a run.

    Raises:
        UsageError: --out holds something else, or --resume never and it holds anything.
    """
    if config.out is not None:
        found = _look(config.out, config, resolved)
        if isinstance(found, str):
            raise UsageError(found)
        if found.begun and config.resume == "never":
            raise UsageError(f"{config.out} holds a run already, and --resume is never: give another --out")
        return found
    path, number, beside = DEFAULT_RUNS / config.name, 1, None
    while True:
        found = _look(path, config, resolved)
        if isinstance(found, str):
            beside = (
                f"{re.split(': (?:give|begin anew) ', found)[0]}: this is a new one"  # without the way out
            )
        elif not found.begun:
            return replace(found, beside=beside)
        elif config.resume == "auto" and (not found.finished or report_is_due(path)):
            return found
        number += 1
        path = DEFAULT_RUNS / f"{config.name}-{number}"


def _look(path: Path, config: RunConfig, resolved: ResolvedRun) -> RunFolder | str:
    """Return the run at `path`, or why it is not this one."""
    if path.exists() and not path.is_dir():
        return f"--out {path} is a file"
    if not path.exists() or all(child.name == LOCK_NAME for child in path.iterdir()):
        return RunFolder(path)
    try:
        before = json.loads((path / CONFIG_NAME).read_text())["identity"]
    except (OSError, ValueError, KeyError):
        return f"--out {path} is not empty and holds no run to go on with: give another --out"
    if (found := before.get("format", 1)) != FORMAT:
        return other_format(path, found)
    now = json.loads(json.dumps(identity(config, resolved)))
    for name, value in now.items():
        if before.get(name) != value:
            return (
                f"{path} holds another run: {_difference(name, before.get(name), value)}: "
                + ("give --batch-size, or " if name == "the global batch" else "give ")
                + "another --out"
            )
    checkpoint = latest_checkpoint(path)
    return RunFolder(
        path, begun=True, finished=checkpoint is not None and checkpoint_step(checkpoint) >= resolved.steps
    )


def _difference(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
        return _difference(
            f"{name}, {key}" if "," not in name else f"{name}.{key}", before.get(key), now.get(key)
        )
    return f"{name} was {before!r} there and is {now!r} now"


def report_is_due(run: Path) -> bool:
    """Whether a run has a checkpoint without the report that follows its last one: it was killed in between."""
    report, last = run / REPORT_NAME, latest_checkpoint(run)
    return last is not None and (
        not report.exists() or report.stat().st_mtime_ns < (last / MANIFEST_NAME).stat().st_mtime_ns
    )


def write_config(run: Path, config: RunConfig, resolved: ResolvedRun, **facts: Any) -> None:
    """Write RUN/config.json: what was asked, what it came to (the resolved, and `facts`), and with which versions.

    URLs in it lose user info and query: a run folder is shown around.
    """
    run.mkdir(parents=True, exist_ok=True)
    content = {
        "config": config.to_json(),
        "resolved": {**resolved.to_json(), **facts},
        "versions": versions(),
        "identity": identity(config, resolved),
    }
    write_atomically(run / CONFIG_NAME, without_credentials(json.dumps(content, indent=2)) + "\n")


def library_versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    return {
        **{library: version(library) for library in _LIBRARIES},
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Return `library_versions`, the command, and coma's git revision in a checkout."""
    found = library_versions()
    found["command"] = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    revision = subprocess.run(
        ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    if revision.returncode == 0:
        found["revision"] = revision.stdout.strip()
    return found
