"""Names of the files and folders in a run folder.

RUN/
  config.json               configuration, resolved run, versions, identity of the run
  metrics.jsonl             one JSON line per training step and per evaluation
  ledger.jsonl              samples that could not be read or decoded, and what was shown instead
  nonfinite.jsonl           steps whose loss or gradient was not finite, with their samples
  checkpoints/
    latest                  name of the newest checkpoint
    step-000100/
      checkpoint.json       format, training state, and the size and hash of each file
      weights.safetensors   the whole network in float32
      average.safetensors   exponential moving average (EMA) of the weights, if the run keeps one
      optimizer-00000.safetensors   what process 0 holds of the optimizer's state; one file per process
  previews/step-000100.png  reconstructions after a step
  tensorboard/              metrics for TensorBoard
  trackers.json             ids of the run at its experiment trackers, which resume it
  wandb/                    local files of Weights & Biases
  lock                      held by rank 0 of the process group that writes here
  stop                      made by a user or scheduler: training saves a checkpoint and ends
  ranks/rank-00000.json     where each process is, while the watchdog runs; .txt: its stacks when it is stuck
  report.html               `coma report`, also written when training ends
  reconstruction.png        `coma reconstruct`
  look.png                  `coma look`
  step-000000100.png        `coma inspect RUN --step 100 --sheet`
"""

from __future__ import annotations

import re
from pathlib import Path

from coma.errors import shell_command

DEFAULT_RUNS = Path("runs")
"""Folder of the runs that are given no other."""
DEFAULT_EXPORTS = Path("exports")
"""Folder of the exports, where a command proposes one."""
CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.jsonl"
LEDGER_NAME = "ledger.jsonl"
NONFINITE_NAME = "nonfinite.jsonl"
CHECKPOINTS_NAME = "checkpoints"
CHECKPOINT_PATTERN = r"step-\d+"
LATEST_NAME = "latest"
MANIFEST_NAME = "checkpoint.json"
WEIGHTS_NAME = "weights.safetensors"
AVERAGE_NAME = "average.safetensors"
PREVIEWS_NAME = "previews"
TENSORBOARD_NAME = "tensorboard"
TRACKERS_NAME = "trackers.json"
LOCK_NAME = "lock"
STOP_NAME = "stop"
RANKS_NAME = "ranks"
REPORT_NAME = "report.html"
RECONSTRUCTION_NAME = "reconstruction.png"
LOOK_NAME = "look.png"


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step`."""
    return run / CHECKPOINTS_NAME / f"step-{step:06}"


def checkpoint_step(checkpoint: Path) -> int:
    """Return the step after which a checkpoint folder was saved."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoints(run: Path) -> list[Path]:
    """Return the run's checkpoint folders, newest first."""
    folders = (run / CHECKPOINTS_NAME).glob("step-*")
    return sorted(
        (path for path in folders if re.fullmatch(CHECKPOINT_PATTERN, path.name)), key=checkpoint_step, reverse=True
    )


def optimizer_name(rank: int) -> str:
    """Return the name of a process's optimizer state in a checkpoint folder."""
    return f"optimizer-{rank:05}.safetensors"


def is_optimizer_name(name: str) -> bool:
    """Whether a file of a checkpoint folder holds a process's optimizer state."""
    return name.startswith("optimizer-")


def rank_name(rank: int, suffix: str) -> str:
    """Return the name of a process's file in `RANKS_NAME`: suffix json says where it is, txt holds its stacks."""
    return f"rank-{rank:05}.{suffix}"


def rank_of(name: str) -> int | None:
    """Return the rank whose file in `RANKS_NAME` has this name; None if it is no such file."""
    match = re.fullmatch(r"rank-(\d+)\..*", name)
    return None if match is None else int(match[1])


def export_command(run: Path) -> str:
    """Return the command that exports the newest checkpoint of a run."""
    return shell_command("coma", "export", run, DEFAULT_EXPORTS / run.resolve().name)


def preview_path(run: Path, step: int) -> Path:
    """Return the picture of reconstructions after `step`."""
    return run / PREVIEWS_NAME / f"step-{step:06}.png"


def step_sheet_path(run: Path, step: int) -> Path:
    """Return the picture of the images in the batch of `step`."""
    return run / f"step-{step:09}.png"
