"""Metrics of a run: metrics.jsonl, TensorBoard, and the progress that a console shows."""

from __future__ import annotations

import json
import logging
import math
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coma.runs.lines import cut_lines
from coma.runs.names import METRICS_NAME, TENSORBOARD_NAME
from coma.runs.read import as_data_error
from coma.training.logs.trackers import Tracker, close_all, write_all

logger = logging.getLogger(__name__)

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
    """Smoothed, as are the rates below."""
    data_wait: float
    """Share of the time spent waiting for data, 0 to 1."""
    eta_s: float
    tflops: float | None = None
    """Model TFLOP/s of a device."""
    mfu: float | None = None
    """Model FLOP/s utilization (MFU): their share of the device's peak, 0 to 1, where that is known."""
    source_epochs: Mapping[str, float] = field(default_factory=dict)
    """Epochs of each data set of a mixture, by name; empty for one data set."""

    @property
    def figures(self) -> str:
        """The line that a log gets, without the step."""
        use = "" if self.mfu is None else f"mfu {self.mfu:.0%}  "
        return (
            f"loss {self.loss:.4f}  lr {self.lr:.1e}  {self.images_per_s:.4g} img/s  {use}"
            f"data wait {self.data_wait:.0%}  {duration(self.eta_s)} left"
        )

    def __str__(self) -> str:
        """Return the line that a log gets, and for a mixture, lines with the epochs of the data sets."""
        line = f"step {self.step}/{self.steps}  {self.figures}"
        return f"{line}\n{wrapped('epochs', self.epochs)}" if self.epochs else line

    @property
    def epochs(self) -> str:
        """The epochs of the data sets of a mixture by their names; empty for one data set."""
        return ", ".join(f"{name} {each:.4g}" for name, each in self.source_epochs.items())


Watcher = Callable[[Progress], None]
"""Called on rank 0 after each step, in place of lines in the log."""


class MetricsLog:
    """Writes metrics to metrics.jsonl, TensorBoard and trackers; on rank 0 only.

    Lines of steps after `start_step`, the checkpoint that the run is resumed from, are cut.
    """

    def __init__(self, run: Path, start_step: int, trackers: Sequence[Tracker] = ()) -> None:
        from torch.utils.tensorboard import SummaryWriter

        cut_lines(run / METRICS_NAME, start_step)
        with as_data_error(run / METRICS_NAME):
            self._file = (run / METRICS_NAME).open("a")
        self._board = SummaryWriter(str(run / TENSORBOARD_NAME), purge_step=start_step + 1, flush_secs=30)
        self._trackers = list(trackers)

    def write(self, line: dict[str, Any], group: str = "train") -> None:
        """Write the metrics of a step, in JSON with null for what is not finite; TensorBoard shows them in `group`."""
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

    def close(self, *, failed: bool = False) -> None:
        """Flush and close the files, and end the run in the trackers."""
        self._file.close()
        self._board.close()
        close_all(self._trackers, failed=failed)


class Pace:
    """The smoothed speed of a run, and what the console shows of it."""

    def __init__(self, steps: int, batch_size: int) -> None:
        self._steps, self._batch_size = steps, batch_size
        self._step_s = self._wait_s = 0.0
        self._count = 0
        self._last_line_s = -math.inf

    def update(self, line: dict[str, Any]) -> Progress:
        """Add the metrics of a step, and return where the run stands."""
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
            tflops=self._smoothed("model_tflops", line),
            mfu=self._smoothed("mfu", line),
            source_epochs={
                name.removeprefix("source/").removesuffix("/epochs"): value
                for name, value in line.items()
                if name.startswith("source/") and name.endswith("/epochs")
            },
        )

    def _smoothed(self, name: str, line: dict[str, Any]) -> float | None:
        """Return a rate of one step at the smoothed speed."""
        return line[name] * line["step_s"] / self._step_s if name in line else None

    @property
    def images_per_s(self) -> float | None:
        """Smoothed images per second; None before the first step."""
        return self._batch_size / self._step_s if self._step_s else None

    def line_is_due(self, step: int) -> bool:
        """Whether to log this step: after every twentieth of the run, and at least once a minute."""
        now = time.monotonic()
        due = self._count == 1 or step == self._steps or now - self._last_line_s >= _LINE_EVERY_S
        due = due or step % max(1, self._steps // _LINES_PER_RUN) == 0
        if due:
            self._last_line_s = now
        return due

    def show(self, progress: Progress, watch: Watcher | None) -> None:
        """Hand the progress to `watch`, or else log it when a line is due."""
        if watch is not None:
            watch(progress)
        elif self.line_is_due(progress.step):
            logger.info("%s", progress)


def wrapped(subject: str, text: str) -> str:
    """Return a text beside its subject, in lines of at most 80 columns."""
    how: dict[str, Any] = {"initial_indent": f"{subject:<9} ", "subsequent_indent": " " * 10}
    return textwrap.fill(text, 80, break_long_words=False, break_on_hyphens=False, **how)


def duration(seconds: float) -> str:
    """Return a length of time in words: `42 s`, `3 min 05 s`, `2 h 10 min`, `4 d 3 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"
