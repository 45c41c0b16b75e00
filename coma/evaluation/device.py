"""Choice of the device that a network is evaluated on."""

from __future__ import annotations

import torch

from coma.errors import UsageError
from coma.installed.cuda import check_cuda


def choose_device(asked: str | None = None) -> str:
    """Return the device that was asked for, or a GPU if there is one, else "cpu".

    Raises:
        UsageError: no such device here, or torch, DALI and the driver do not match.
    """
    if asked is None or asked.startswith("cuda"):
        check_cuda()
    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        device = torch.device("meta")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < gpus):
        return asked
    raise UsageError(f"--device {asked}: this machine has cpu and {gpus} GPUs (cuda, cuda:0, ...)")
