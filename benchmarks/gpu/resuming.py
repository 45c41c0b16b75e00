"""ZeRO 0 to 3 on one device by `coma pretrain`: stopped, killed -9 and resumed, is it the uninterrupted run?

An uninterrupted run is also compared with its own repetition: where those differ, the device does not compute the
same twice, and a resumed run cannot be expected to.
"""

import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.gpu.coma_command import CommandFailed, options, start, steps_of, wait, wait_for
from benchmarks.gpu.part import Measuring
from coma.runs.names import checkpoint_step
from coma.runs.read import latest_checkpoint

_COMPARED = ("step", "loss", "lr", "grad_norm", "batch_digest")
_CORES_PER_RUN = 2


@dataclass(frozen=True)
class _Course:
    """Steps of a run: saved, stopped after, killed at, and in all."""

    save_every: int
    stop_after: int
    kill_at: int
    steps: int


def measure_zero(measuring: Measuring) -> None:
    """Compare at each stage; the stages' runs go side by side, as nothing is timed."""
    course = _Course(1, 2, 4, 8) if measuring.quick else _Course(20, 30, 70, 120)
    stages = (1,) if measuring.quick else (0, 1, 2, 3)
    # A rehearsal does not repeat: that is the same again.
    kinds = {"resumed": _interrupted, "whole": _whole} | ({} if measuring.quick else {"repeated": _repeated})
    runs = max(1, len(os.sched_getaffinity(0)) // _CORES_PER_RUN)
    with ThreadPoolExecutor(runs) as pool:
        tasks = {
            pool.submit(kind, measuring, stage, course): (stage, name)
            for stage in stages
            if not measuring.has(stage=stage)
            for name, kind in kinds.items()
        }
        done: dict[int, dict[str, Any]] = {}
        for task in as_completed(tasks):
            stage, name = tasks[task]
            try:
                done.setdefault(stage, {})[name] = task.result()
            except CommandFailed as error:
                done.setdefault(stage, {})[name] = {"failed": f"{name}: {error}"}
            if len(done[stage]) == len(kinds):
                _compare(measuring, stage, course, done[stage])
    measuring.note(
        f"compared: {', '.join(_COMPARED)} of every step, and the weights of the last checkpoint, bit by bit"
    )
    measuring.note("repeated: the uninterrupted run against its own repetition")


def _words(measuring: Measuring, stage: int, course: _Course, run: Path) -> list[str]:
    size = options(measuring, model="dyvit_nano" if measuring.quick else "dyvit_tiny", image_size=96, batch_size=64)
    saving = ["--save-every", str(course.save_every), "--steps", str(course.steps)]
    return ["pretrain", str(measuring.data), "--out", str(run), "--ds-config", f"zero{stage}", *size, *saving]


def _whole(measuring: Measuring, stage: int, course: _Course, name: str = "whole") -> dict[str, Any]:
    """Train without interruption."""
    run = measuring.scratch / f"{name}-{stage}"
    log = run.with_suffix(".log")
    wait(measuring, start(measuring, _words(measuring, stage, course, run), log), log)
    return {"run": run}


def _repeated(measuring: Measuring, stage: int, course: _Course) -> dict[str, Any]:
    return _whole(measuring, stage, course, "repeated")


def _interrupted(measuring: Measuring, stage: int, course: _Course) -> dict[str, Any]:
    """Train with a stop and a kill -9 on the way."""
    run = measuring.scratch / f"resumed-{stage}"
    log, words = run.with_suffix(".log"), _words(measuring, stage, course, run)
    wait(measuring, start(measuring, [*words, "--stop-after", str(course.stop_after)], log), log)
    stopped = len(steps_of(run))
    process = start(measuring, words, log)
    reached = wait_for(lambda: len(steps_of(run)) >= course.kill_at, process, measuring.left_s)
    process.kill()
    process.wait()
    killed = len(steps_of(run))
    if not reached or killed >= course.steps:
        raise CommandFailed(f"it was to be killed at step {course.kill_at} of {course.steps} and was at {killed}")
    checkpoint = latest_checkpoint(run)
    resumed = checkpoint_step(checkpoint) if checkpoint else 0
    wait(measuring, start(measuring, words, log), log)
    return {"run": run, "stopped_after": stopped, "killed_after": killed, "resumed_from": resumed}


def _compare(measuring: Measuring, stage: int, course: _Course, done: dict[str, Any]) -> None:
    failed = "; ".join(each["failed"] for each in done.values() if "failed" in each)
    if failed:
        measuring.put({"stage": stage}, failed=failed)
        return
    whole, resumed = done["whole"]["run"], done["resumed"]["run"]
    interruptions = {name: value for name, value in done["resumed"].items() if name != "run"}
    compared = _differences(resumed, whole)
    repeated = _differences(done["repeated"]["run"], whole) if "repeated" in done else {}
    measuring.put(
        {"stage": stage},
        steps=course.steps,
        **interruptions,
        **compared,
        **{f"repeated_{name}": value for name, value in repeated.items()},
    )


def _differences(run: Path, other: Path) -> dict[str, Any]:
    """Compare two runs."""
    mine, theirs = ([{name: line[name] for name in _COMPARED} for line in steps_of(each)] for each in (run, other))
    first = next((a["step"] for a, b in zip(mine, theirs, strict=False) if a != b), None)
    weights, expected = _weights(run), _weights(other)
    alike = weights.keys() == expected.keys()
    return {
        "losses_equal": mine == theirs,
        "weights_equal": alike and all(torch.equal(value, expected[name]) for name, value in weights.items()),
        "first_step_that_differs": first,
        "greatest_loss_difference": max(
            (abs(a["loss"] - b["loss"]) for a, b in zip(mine, theirs, strict=False)), default=0.0
        ),
        "greatest_weight_difference": max(
            (float((value - expected[name]).abs().max()) for name, value in weights.items() if name in expected),
            default=0.0,
        ),
    }


def _weights(run: Path) -> dict[str, Tensor]:
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        raise CommandFailed(f"{run.name} has no checkpoint")
    return dict(load_file(checkpoint / "weights.safetensors"))
