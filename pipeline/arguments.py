"""Arguments of a stream, checked and made plain: its data, device, position and threads."""

import os
from pathlib import Path
from typing import Any

import torch

from coma.errors import UsageError
from coma.pipeline.plain import shown, whole_number
from coma.shards.files import folder_at
from coma.shards.manifest import Manifest, read_manifest, read_mixture
from coma.shards.shares import named_sources

_MOST_SAMPLES = 2**62  # whose positions int64 holds


def device_of(device: torch.device | str) -> torch.device:
    """Return the device, with its index if it is a GPU, as threads do not inherit the current one."""
    try:
        chosen = torch.device(int(device) if hasattr(device, "__index__") else device)
        if str(chosen) == "cuda":
            chosen = torch.device("cuda", torch.cuda.current_device())
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UsageError(
            f"device {shown(device)} is of no use ({reason}); give 'cpu', or a GPU of this machine"
        ) from None
    if chosen.type not in ("cpu", "cuda"):
        raise UsageError(f"device {chosen} cannot be given batches; give 'cpu' or 'cuda', and move them yourself")
    return chosen


def position(name: str, value: Any) -> int:
    """Return a number of samples that the positions of a run can have. Raises UsageError."""
    if (number := whole_number(name, value, 0)) >= _MOST_SAMPLES:
        raise UsageError(f"{name} is {number}; give less than 2^62")
    return number


def manifest_of(data: Any, split: str) -> Manifest:
    """Read the data that a stream was given: one data set, or several with their shares.

    Raises:
        UsageError: it is none of these.
        DataError: a data set is missing or damaged.
    """
    if isinstance(data, Manifest):
        return data
    if isinstance(data, list | tuple):
        sources = named_sources(data)
        return read_mixture(data, split) if len(sources) > 1 else read_manifest(_folder(sources[0].place), split)
    return read_manifest(_folder(data), split)


def _folder(data: Any) -> Path:
    """Return the folder of a data set as an absolute path, which a later change of folder does not move."""
    try:
        return folder_at(data if isinstance(data, str) or hasattr(data, "joinpath") else os.fspath(data)).absolute()
    except TypeError:
        raise UsageError(f"data is {shown(data)}; give a folder, a URL or a Manifest") from None


def share_of_cores(world_size: int) -> int:
    """Number of cores that this process may use, divided among the ranks of this machine that share them."""
    told, cores = os.environ, len(os.sched_getaffinity(0))
    local_ranks = told.get("LOCAL_WORLD_SIZE") or told.get("LOCAL_SIZE")  # torchrun's, DeepSpeed's launcher's
    if local_ranks is None and int(told.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        if cores < (os.cpu_count() or 1):
            return cores  # srun has given each task its own
        local_ranks = told.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0].split(",")[0]  # 8(x2),4
    return max(1, cores // max(1, int(local_ranks or world_size)))
