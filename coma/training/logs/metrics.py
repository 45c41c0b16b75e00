"""A run's figures: a JSON line a step, the same in TensorBoard, and lines or a bar for whoever watches."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coma.shards.files import write_atomically
from coma.training.logs.trackers import Tracker, write_all

logger = logging.getLogger(__name__)

METRICS_NAME = "metrics.jsonl"
TENSORBOARD_NAME = "tensorboard"
_LINE_EVERY_S = 60.0
_LINES_PER_RUN = 20


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for a progress bar."""

    step: int
    steps: int
    loss: float
    lr: float
    images_per_s: float
    data_wait: float
    """Share of the time spent waiting for data, 0 to 1."""
    eta_s: float
    tflops: float | None = None
    """Model TFLOP/s of a device, of late."""
    mfu: float | None = None
    """Their share of what it could do, 0 to 1, where that is known."""

    @property
    def figures(self) -> str:
        """The figures in words, without the step."""
        use = "" if self.tflops is None else f"{self.tflops:.3g} TFLOP/s  "
        use = use if self.mfu is None else f"mfu {self.mfu:.0%}  "
        return (
            f"loss {self.loss:.4f}  lr {self.lr:.1e}  {self.images_per_s:.4g} img/s  {use}"
            f"data wait {self.data_wait:.0%}  {duration(self.eta_s)} left"
        )

    def __str__(self) -> str:
        """Return the line that a log gets."""
        return f"step {self.step}/{self.steps}  {self.figures}"


class MetricsLog:
    """Writes the figures of a session; on rank 0 only.

    Args:
        run: the run folder.
        start_step: the last step of the checkpoint that the session goes on from; later lines are cut.
        trackers: who else gets the figures.
    """

    def __init__(self, run: Path, start_step: int, trackers: Sequence[Tracker] = ()) -> None:
        """Open the files, without the lines past `start_step`."""
        from torch.utils.tensorboard import SummaryWriter

        cut_after(run / METRICS_NAME, start_step)
        self._file = (run / METRICS_NAME).open("a")
        self._board = SummaryWriter(str(run / TENSORBOARD_NAME), purge_step=start_step + 1, flush_secs=30)
        self._trackers = list(trackers)

    def write(self, line: dict[str, Any], group: str = "train") -> None:
        """Write a step's figures, which TensorBoard groups; what is not finite becomes null."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in line.items()
        }
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        figures = {f"{group}/{name}": value for name, value in finite.items() if isinstance(value, float)}
        for name, value in figures.items():
            self._board.add_scalar(name, value, line["step"])
        write_all(self._trackers, figures, line["step"])

    def close(self) -> None:
        """Flush and close the files."""
        self._file.close()
        self._board.close()
        for tracker in self._trackers:
            tracker.close()


class Pace:
    """The speed of late, smoothed, and when a line is due in a log that nobody watches live."""

    def __init__(self, steps: int, batch_size: int) -> None:
        """Begin to measure a run of `steps` steps of `batch_size` images."""
        self._steps = steps
        self._batch_size = batch_size
        self._step_s = 0.0
        self._wait_s = 0.0
        self._count = 0
        self._last_line_s = -math.inf

    def take(self, line: dict[str, Any]) -> Progress:
        """Take in a step's figures and tell where the run stands."""
        self._count += 1
        weight = max(0.05, 1.0 / self._count)
        self._step_s += weight * (line["step_s"] - self._step_s)
        self._wait_s += weight * (line["data_wait_s"] - self._wait_s)
        return Progress(
            step=line["step"],
            steps=self._steps,
            loss=line["loss"],
            lr=line["lr"],
            images_per_s=self.images_per_s or 0.0,
            data_wait=self._wait_s / self._step_s,
            eta_s=(self._steps - line["step"]) * self._step_s,
            tflops=self._of_late("model_tflops", line),
            mfu=self._of_late("mfu", line),
        )

    def _of_late(self, name: str, line: dict[str, Any]) -> float | None:
        """A rate at the smoothed pace, given that of one step."""
        return line[name] * line["step_s"] / self._step_s if name in line else None

    @property
    def images_per_s(self) -> float | None:
        """Images a second of late, None before the first step."""
        return self._batch_size / self._step_s if self._step_s else None

    def line_is_due(self, step: int) -> bool:
        """Whether to log this step: every twentieth of the run, and once a minute."""
        now = time.monotonic()
        due = self._count == 1 or step == self._steps or now - self._last_line_s >= _LINE_EVERY_S
        due = due or step % max(1, self._steps // _LINES_PER_RUN) == 0
        if due:
            self._last_line_s = now
        return due


def cut_after(path: Path, step: int) -> None:
    """Drop the JSON lines past `step`, and a last one that a crash left half written."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
    if len(kept) < len(lines):
        write_atomically(path, "".join(kept))


def was_evaluated(run: Path, step: int) -> bool:
    """Whether a run's figures have a line of an evaluation after `step`."""
    path = run / METRICS_NAME
    if not path.exists():
        return False
    with path.open() as file:
        found = [json.loads(line) for line in file if f'"step": {step},' in line]
    return any("loss" not in line for line in found)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def duration(seconds: float) -> str:
    """Return a length of time as a person would say it: `42 s`, `3 min 05 s`, `2 h 10 min`, `4 d 3 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"
