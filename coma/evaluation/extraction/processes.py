"""Frozen networks on several processes of this machine: their devices, their threads, and jobs that run on them.

What a network computes depends on its batches alone, which no number of processes changes: a job is a run of whole
batches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar, cast

from coma.errors import UsageError
from coma.evaluation.device import choose_device
from coma.exports.backbone import Backbone, load_backbone
from coma.shards.child_process import NUMBER_VARIABLE
from coma.shards.write.pool import run_jobs
from coma.shards.write.worker import Job, Tally, run_all

J = TypeVar("J", bound=Job)

LIMIT = "--devices"
_JOBS_EACH = 4
"""Jobs for each process: the last to end leaves the others idle for little of the time."""


@dataclass(frozen=True)
class Processes:
    """Processes that share the work, each with a device of its own."""

    devices: tuple[str, ...]
    """Device of each process."""

    def __len__(self) -> int:
        """Return their number."""
        return len(self.devices)

    @property
    def threads(self) -> int:
        """Number of threads of each, on a CPU and to decode for a GPU."""
        return max(1, len(os.sched_getaffinity(0)) // len(self))

    @property
    def kind(self) -> str:
        """Kind of device: cpu or cuda."""
        return self.devices[0].partition(":")[0]

    def here(self) -> str:
        """Return the device of the process that asks, one of these or the only one."""
        return self.devices[int(os.environ.get(NUMBER_VARIABLE, "0")) % len(self) if len(self) > 1 else 0]


def choose_processes(devices: int | str | None, device: str | None) -> Processes:
    """Return the processes that `--devices` and `--device` ask for.

    Args:
        devices: number of processes, one a GPU if there are GPUs; "auto" for all GPUs; None for one.
        device: "cpu", "cuda" or one GPU; None for GPUs if there are any.

    Raises:
        UsageError: there is no such device, or fewer GPUs than processes.
    """
    first = choose_device(device)
    if first == "cpu":
        return Processes(("cpu",) * (1 if devices in (None, "auto") else int(devices or 1)))
    if devices in (None, 1):
        return Processes((first,))
    import torch

    gpus = torch.cuda.device_count()
    if ":" in first:
        raise UsageError(f"--device {first} is one GPU, and --devices {devices} wants several: leave out --device")
    count = gpus if devices == "auto" else int(devices or 1)
    if count > gpus:
        raise UsageError(
            f"--devices {count} wants a GPU for each process, and this machine has {gpus}: use --devices {gpus}, "
            "or auto for all, or --device cpu"
        )
    return Processes(tuple(f"cuda:{number}" for number in range(count)))


def shares(batches: int, processes: Processes) -> list[range]:
    """Cut batches 0 to `batches` - 1 into runs of nearly equal length, of which each job takes one."""
    count = 1 if len(processes) == 1 else min(batches, _JOBS_EACH * len(processes))
    edges = [batches * place // count for place in range(count + 1)] if count else [0]
    return [range(start, stop) for start, stop in pairwise(edges)]


def run_on(
    processes: Processes, jobs: Sequence[J], done: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[J, Any]]:
    """Run jobs, in this process if there is one alone; yield each with its result as it is done.

    `done` is called with the number of images done since the last call.
    """
    if len(processes) == 1:
        for job in jobs:
            yield job, job.run(lambda tally: done(tally.images))
        return
    for event in run_jobs(jobs, len(processes), limit=LIMIT, module=__name__):
        if isinstance(event, Tally):
            done(event.images)
        else:
            yield cast("tuple[J, Any]", event)


def serve(descriptor: int) -> None:
    """Run the jobs that arrive on a connection, in a child."""
    run_all(descriptor)


@dataclass(frozen=True)
class BackboneName:
    """What a process needs to load a backbone itself: the arguments of `load_backbone`."""

    model: str
    image_size: int | None = None
    untrained: bool = False

    def load(self, device: str) -> Backbone:
        """Load the backbone anew."""
        return load_backbone(self.model, image_size=self.image_size, untrained=self.untrained, device=device)


_LOADED: dict[tuple[BackboneName, str], Backbone] = {}


def loaded(name: BackboneName, device: str) -> Backbone:
    """Return the backbone that this process was lent; a child loads it once for all of its jobs."""
    if (name, device) not in _LOADED:
        _LOADED[name, device] = name.load(device)
    return _LOADED[name, device]


@contextmanager
def lending(name: BackboneName, device: str, backbone: Backbone) -> Iterator[None]:
    """Lend the jobs of this process a backbone for the length of a block."""
    _LOADED[name, device] = backbone
    try:
        yield
    finally:
        del _LOADED[name, device]


def use_threads(processes: Processes) -> None:
    """Give torch this process's share of the cores, if it is one of several: a child starts with one thread."""
    if len(processes) > 1:
        import torch

        torch.set_num_threads(processes.threads)
