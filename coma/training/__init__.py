"""Training: from a `PretrainConfig` or `FinetuneConfig` to a run folder. The one place that imports DeepSpeed.

`config` is what was asked, `plan` what it comes to, `run_folder` where it goes, `task` what is trained
(`pretraining`, `finetuning`), `loop` the steps themselves.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coma.errors import UsageError
from coma.training.config.finetune_options import FinetuneConfig
from coma.training.config.options import PretrainConfig, RunConfig

if TYPE_CHECKING:
    from coma.training.logs.metrics import Progress

__all__ = ["FinetuneConfig", "PretrainConfig", "finetune", "pretrain"]

Watcher = Callable[["Progress"], None]


def pretrain(
    config: PretrainConfig, progress: Watcher | None = None, launched: Path | None = None
) -> dict[str, Any]:
    """Pre-train as `config` says: in this process, in the group that a launcher made, or in new processes.

    Args:
        config: what to do.
        progress: called after each step on rank 0; without it, lines are logged now and then.
        launched: the file that `config` was read from, if `coma.training.processes.launch` started this process.

    Returns:
        run, steps, epochs, loss, images_per_s, elapsed_s, finished, checkpoint, weights, picture, report.
        Empty on every rank but 0.

    Raises:
        UsageError, DataError: before anything is written.
        DivergedError: after too many steps without a finite loss.
        Preempted: after SIGTERM or SIGUSR1, with a checkpoint saved.
        KeyboardInterrupt: after Ctrl-C, with a checkpoint saved.
    """
    return _run(config, progress, launched)


def finetune(
    config: FinetuneConfig, progress: Watcher | None = None, launched: Path | None = None
) -> dict[str, Any]:
    """Fine-tune a pre-trained backbone on labels; all is as with `pretrain`.

    Returns:
        besides, accuracy and accuracy_top5 on split val (percent; None without one).
    """
    return _run(config, progress, launched)


def _run(config: RunConfig, progress: Watcher | None, launched: Path | None) -> dict[str, Any]:
    from coma.training.processes import launch
    from coma.training.processes.child import Launcher
    from coma.training.processes.signals import StopRequests
    from coma.training.processes.world import find_place, joined
    from coma.training.run_lock import RunLock

    place = find_place(os.environ)
    if place is None and config.hostfile is not None:
        return launch.start_on_hosts(config)
    if place is None and config.devices is not None and config.devices > 1:
        return launch.start_here(config, config.devices)
    if place is not None and config.devices not in (None, place.world_size):
        raise UsageError(
            f"--devices {config.devices} inside a launcher that started {place.world_size} processes: leave "
            "it out"
        )
    if place is not None and place.rank > 0:
        logging.getLogger("coma").setLevel(logging.ERROR)
    launcher = Launcher(launched, place.rank if place else 0)
    with StopRequests(launcher.wants_stop) as stop, launcher, joined(place) as world, RunLock() as lock:
        from coma.training.train import train  # imports DeepSpeed, which looks at the environment

        result = train(config, world, stop, lock, progress)
        if world.leads:
            launcher.hand_back(result)
    return result
