"""Training: from a `PretrainConfig` or `FinetuneConfig` to a run folder. Only this room imports DeepSpeed.

In reading order:

    config/       options of a run, resolved against the data, the devices and a DeepSpeed file
    setup         the resolved run, its data and its task, compared on all ranks
    run_folder    which folder the run uses: a new one, or that of a run to resume
    run_lock      the lock of that folder
    train         a run from start to end
    loop          a step, and what happens between two steps
    nonfinite     steps without a finite loss or gradient
    tasks/        what the loop trains: pre-training, fine-tuning, their evaluation and previews
    engine/       DeepSpeed's engine, checkpoints, optimizer state, moving average of the weights
    processes/    launch, process group, signals to stop, watchdog
    logs/         metrics, trackers, utilization, console messages
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coma.errors import UsageError
from coma.training.config.finetune_options import FinetuneConfig
from coma.training.config.options import PretrainConfig, RunConfig

if TYPE_CHECKING:
    from coma.training.logs.metrics import Watcher

_RUNNING = threading.Lock()

__all__ = ["FinetuneConfig", "PretrainConfig", "finetune", "pretrain"]


def pretrain(
    config: PretrainConfig, progress: Watcher | None = None, config_file: Path | None = None
) -> dict[str, Any]:
    """Pre-train: in this process, in the process group of a launcher, or in new processes.

    Args:
        config: options of the run.
        progress: called after each step on rank 0; without it, progress is logged.
        config_file: the file that `config` was read from, if `coma.training.processes.launch` started this process.

    Returns:
        run, steps, epochs, loss, images_per_s, elapsed_s, finished, metrics, checkpoint, weights, picture, report;
        the same on every rank.

    Raises:
        UsageError, DataError: before anything is written.
        DivergedError: after too many steps without a finite loss.
        Preempted: after SIGTERM or SIGUSR1, with a checkpoint saved.
        KeyboardInterrupt: after Ctrl-C, with a checkpoint saved.
    """
    return _run(config, progress, config_file)


def finetune(
    config: FinetuneConfig, progress: Watcher | None = None, config_file: Path | None = None
) -> dict[str, Any]:
    """Fine-tune a pre-trained backbone on labels; arguments and errors are those of `pretrain`.

    Returns:
        What `pretrain` returns, and with a split val: accuracy and, above 5 classes, accuracy_top5, in percent.
    """
    return _run(config, progress, config_file)


def _run(config: RunConfig, progress: Watcher | None, config_file: Path | None) -> dict[str, Any]:
    from coma.training.processes import gpus, launch
    from coma.training.processes.child import ParentCommand
    from coma.training.processes.signals import StopRequests
    from coma.training.processes.world import find_place, joined
    from coma.training.run_lock import RunLock

    place = find_place(os.environ)
    if place is None and config.hostfile is not None:
        return launch.start_on_hosts(config, progress)
    if place is None and (devices := gpus.processes_here(config.devices)) > 1:
        return launch.start_here(config, devices, progress)
    if place is not None and config.devices not in (None, "auto", place.world_size):
        raise UsageError(
            f"--devices {config.devices} inside a launcher that started {place.world_size} processes: leave it out, or "
            f"give --devices {place.world_size} where it is from a file"
        )
    if place is not None and place.rank > 0:
        logging.getLogger("coma").setLevel(logging.ERROR)
    parent = ParentCommand(config_file, place.rank if place else 0)
    with _only_run(), StopRequests(parent.wants_stop) as stop, parent, joined(place) as world, RunLock() as lock:
        from coma.training.train import train  # imports DeepSpeed, which looks at the environment

        result = train(config, world, stop, lock, parent.watcher() or progress)
        if world.is_rank0:
            parent.return_result(result)
        return world.gather(result)[0]


@contextmanager
def _only_run() -> Iterator[None]:
    """Refuse a second run in this process while the block lasts: they would share torch's seeds and process group."""
    if not _RUNNING.acquire(blocking=False):
        raise UsageError("a run is going on in another thread: wait for its end, or give each a process of its own")
    try:
        yield
    finally:
        _RUNNING.release()
