"""Offload to a drive (ZeRO-Infinity, arXiv 2104.07857): what stage 3 keeps in files, and how it is got at.

DeepSpeed gives the files of every run the same names, reads back what it finds and deletes nothing. Here a process
has a folder of its own, locked while it lives, and sweeps up those of processes that were killed.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from coma.errors import UsageError
from coma.shards.locks import take_lock
from coma.training.config.ds_offload import on_drive
from coma.training.engine.nvme_files import opened, told

_PREFIX = f"coma-swap-{socket.gethostname()}_"
"""With the host: a file system of several may know each one's locks there alone. None has an underscore."""


def check_drive(deepspeed: Mapping[str, Any], source: str) -> None:
    """See that the folder for an offload is there and can be written to.

    Raises:
        UsageError: it is not.
    """
    if (section := on_drive(deepspeed["zero_optimization"])) is None:
        return
    folder = _folder(section)
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise UsageError(
            f"{folder} is no folder that can be written to: give 'zero_optimization.offload_optimizer.nvme_path' in "
            f"{source} one on a local drive (without the key it is $TMPDIR, or /tmp)"
        )


def _folder(section: Mapping[str, Any]) -> Path:
    return Path(section.get("nvme_path") or tempfile.gettempdir())


class SwapFolder:
    """This process's own folder for a configuration's offload to a drive; there is none without it."""

    def __init__(self, deepspeed: Mapping[str, Any]) -> None:
        """Make it, and remove those that killed processes left in the same place.

        Raises:
            ComaError: the place takes none.
        """
        self.config = dict(deepspeed, zero_optimization=copy.deepcopy(deepspeed["zero_optimization"]))
        """What `deepspeed.initialize` is to be given."""
        self.path: Path | None = None
        if (section := on_drive(self.config["zero_optimization"])) is None:
            return
        parent = _folder(section)
        with told(parent), _locked(parent):
            _sweep(parent)
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._descriptor = os.open(self.path, os.O_RDONLY)
            take_lock(self._descriptor, wait=True)
        section["nvme_path"] = str(self.path)

    def sync(self) -> None:
        """Have the system write what it has only taken so far.

        Raises:
            ComaError: it could not.
        """
        for path in self.path.rglob("*.swp") if self.path else ():
            with told(path), opened(path, os.O_RDONLY) as descriptor:
                os.fsync(descriptor)

    def remove(self) -> None:
        """Delete it."""
        if self.path is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._descriptor)
            self.path = None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with opened(folder, os.O_RDONLY) as descriptor:
        take_lock(descriptor, wait=True)
        yield


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        # It may be of somebody who is alive, or of another user.
        with contextlib.suppress(OSError), opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            if take_lock(descriptor):
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def in_memory(engine: Any, flat: Tensor, *, changed: bool = False) -> Iterator[None]:
    """Have a tensor of the optimizer and its state in memory for a while, if ZeRO keeps them on a drive.

    Outside they are empty there. One tensor at a time; `changed` writes it back.
    """
    optimizer = engine.optimizer
    index = _index_on_drive(optimizer, flat)
    if index is None:
        yield
        return
    optimizer._optimizer_states_and_gradient_swap_in(index)
    yield  # after an error the process ends anyway
    if changed:
        optimizer.optimizer_swapper.swap_out_optimizer_state(parameter=flat, async_swap=False)
        flat.grad = None
    else:
        optimizer._release_swap_buffers(index)


def _index_on_drive(optimizer: Any, flat: Tensor) -> int | None:
    if not getattr(optimizer, "swap_optimizer", False):
        return None
    index = next(i for i, one in enumerate(optimizer.fp32_partitioned_groups_flat) if one is flat)
    return index if optimizer._swappable_optimizer_subgroup(index) else None


def gather_from_drive(engine: Any) -> dict[str, Tensor]:
    """Collect the float32 weights that ZeRO keeps on a drive, each file read once; collective.

    On all ranks but 0 the tensors are empty. DeepSpeed's own function reads a whole group for each parameter.
    """
    optimizer = engine.optimizer
    found: dict[str, Tensor] = {}
    if not getattr(optimizer, "swap_optimizer", False):
        return found
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    for flat, parameters in zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups, strict=True):
        with in_memory(engine, flat):
            for parameter in parameters:
                _, offset, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
                whole = optimizer._fp32_state_allgather(parameter, flat.narrow(0, offset, count))
                kept = whole if engine.global_rank == 0 else whole.new_empty(0)
                found[names[id(parameter)]] = kept.detach().to("cpu", copy=True)
    return found
