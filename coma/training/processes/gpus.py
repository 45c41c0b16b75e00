"""GPUs of this machine: how many a process sees, and that no two processes of a run are on one.

Torch is not imported: the command that only starts others would wait for it.
"""

from __future__ import annotations

import ctypes
import os
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from coma.errors import UsageError

_GPU, _VERDICT, _HEARD = "coma/gpu", "coma/verdict", "coma/heard"
"""Keys of the store: what each rank has, what rank 0 makes of it, and that a rank has read that."""
_STORES: list[Any] = []


def visible_gpus() -> int:
    """Count the GPUs that torch would see here, CUDA_VISIBLE_DEVICES obeyed, by asking the driver."""
    torch = find_spec("torch")
    if torch is None or not (Path(str(torch.origin)).parent / "lib" / "libtorch_cuda.so").exists():
        return 0
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value


def processes_here(devices: int | str | None) -> int:
    """Return the number of processes that `--devices` starts on this machine.

    Raises:
        UsageError: they are more than the GPUs that are visible, if there are any.
    """
    if devices is None or devices == 1:
        return 1
    gpus = visible_gpus()
    if isinstance(devices, str):  # auto
        return max(1, gpus)
    if 0 < gpus < devices:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = "this machine has" if visible is None else f"CUDA_VISIBLE_DEVICES={visible} leaves"
        raise UsageError(
            f"--devices {devices} wants a GPU for each process, and {seen} {gpus}: "
            f"use --devices {gpus}, or auto for all that are visible"
        )
    return devices


def refuse_shared_gpus(rank: int, world_size: int, gpu: str) -> None:
    """Refuse a run of which two ranks have one GPU, on which NCCL would hang, before it is asked; collective.

    The ranks meet at MASTER_ADDR and MASTER_PORT, where a process group can meet again later.

    Args:
        rank, world_size: of this process.
        gpu: host and identity of its GPU, with a space between.

    Raises:
        UsageError: there are such ranks; on rank 0, the others raise SystemExit with its exit code.
    """
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", rank=rank, world_size=world_size))
    _STORES.append(store)  # its server must not end before the process group's begins
    store.set(f"{_GPU}/{rank}", gpu)
    if rank > 0:
        verdict = store.get(_VERDICT)
        store.set(f"{_HEARD}/{rank}", "")
        if verdict != b"apart":
            raise SystemExit(UsageError.exit_code)
        return
    ranks = defaultdict(list)
    for rank in range(world_size):
        ranks[store.get(f"{_GPU}/{rank}").decode()].append(rank)
    shared = [(gpu.split()[0], together) for gpu, together in ranks.items() if len(together) > 1]
    store.set(_VERDICT, "shared" if shared else "apart")
    if shared:
        store.wait([f"{_HEARD}/{rank}" for rank in range(1, world_size)])  # as the store ends with this process
        host, together = shared[0]
        named = " and ".join(map(str, together[:2])) + (f" and {len(together) - 2} more" if len(together) > 2 else "")
        raise UsageError(
            f"ranks {named} have one GPU on {host}: start no more processes there than it has GPUs "
            "(--devices auto), and give each its own"
        )
