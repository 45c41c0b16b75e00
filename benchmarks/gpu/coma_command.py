"""`coma` as a user runs it, in processes of its own: started, waited for, and read from its run folder."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.part import Measuring
from coma.runs.lines import read_lines
from coma.runs.names import METRICS_NAME

GIB = 1 << 30
_LOOK_S = 0.002


class CommandFailed(Exception):
    """The command ended with another exit code than 0, or not in time."""


def options(measuring: Measuring, **given: object) -> list[str]:
    """Return the words of options by their fields' names; in a rehearsal those that say how large things are shrink."""
    if measuring.quick:
        given |= {"model": "dyvit_nano", "image_size": 48, "patch_size": 2, "batch_size": 4, "workers": 1}
        given |= {"model": "vit_tiny_patch16_224", "patch_size": None} if given.get("method") == "mae" else {}
    words: list[str] = []
    for name, value in given.items():
        if value is True:
            words.append(f"--{name.replace('_', '-')}")
        elif value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def start(measuring: Measuring, words: list[str], log: Path, **variables: str) -> "subprocess.Popen[bytes]":
    """Start `coma WORDS`, its stderr and stdout appended to `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "coma", *words],
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            cwd=measuring.scratch,
            env={**os.environ, **variables},
        )


def wait(measuring: Measuring, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait for a command; raises `CommandFailed` with its last words."""
    try:
        code = process.wait(measuring.left_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise CommandFailed("killed, as the budget of time was used up") from None
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")] or lines
        raise CommandFailed(f"exit code {code}: {errors[-1][:300] if errors else 'it said nothing'}")


def pretrain(measuring: Measuring, name: str, words: list[str], **variables: str) -> list[dict[str, Any]]:
    """Run `coma pretrain` to its end in a run folder of that name, and return the metrics of its steps."""
    run, log = measuring.scratch / name, measuring.scratch / f"{name}.log"
    command = ["pretrain", str(measuring.data), "--out", str(run), *words, "--save-every", "1000000"]
    print(f"\ncoma {' '.join(command)}", flush=True)
    try:
        wait(measuring, start(measuring, command, log, **variables), log)
    finally:
        print(log.read_text(errors="replace"), flush=True)
    return steps_of(run)


def plan(measuring: Measuring, name: str, words: list[str]) -> dict[str, Any]:
    """Run `coma plan --json` and return what it says."""
    log = measuring.scratch / f"{name}.log"
    with log.open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "coma", "plan", str(measuring.data), "--json", *words],
            stdout=subprocess.PIPE,
            stderr=file,
            stdin=subprocess.DEVNULL,
            cwd=measuring.scratch,
            timeout=measuring.left_s,
        )
    if done.returncode:
        raise CommandFailed(f"exit code {done.returncode}: {log.read_text(errors='replace').strip()[-300:]}")
    return dict(json.loads(done.stdout))


def steps_of(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's steps; none while there is no file."""
    return [line for line in read_lines(run / METRICS_NAME) if "loss" in line]


def wait_for(holds: Callable[[], bool], process: "subprocess.Popen[bytes]", limit_s: float) -> bool:
    """Wait until something holds; whether it did before the process ended and the time was up."""
    deadline_s = time.monotonic() + limit_s
    while not holds():
        if process.poll() is not None or time.monotonic() > deadline_s:
            return holds()
        time.sleep(_LOOK_S)
    return True


def typical(lines: list[dict[str, Any]], uncounted: int) -> Mapping[str, float]:
    """Return medians over a run's steps but the first ones, and the peak of its memory."""
    counted = lines[min(uncounted, len(lines) - 1) :]
    step_s = statistics.median(line["step_s"] for line in counted)
    waiting_s = statistics.median(line["data_wait_s"] for line in counted)
    return {
        "step_ms": 1e3 * step_s,
        "waiting_ms": 1e3 * waiting_s,
        "memory_gb": max(line["memory_gib"] for line in lines) * GIB / 1e9,
        "images_per_s": statistics.median(line["images_per_s"] for line in counted),
    }
