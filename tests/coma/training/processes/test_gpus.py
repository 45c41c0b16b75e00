"""As many processes as GPUs, and each on its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from coma.errors import UsageError
from coma.training.config.options import PretrainConfig
from coma.training.processes import gpus
from coma.training.processes.gpus import processes_here, visible_gpus
from coma.training.processes.world import free_port


def test_the_driver_and_torch_see_the_same_gpus() -> None:
    assert visible_gpus() == torch.cuda.device_count()


def test_counting_does_not_import_torch() -> None:
    code = "import sys; from coma.training.processes.gpus import processes_here; processes_here('auto')\n"
    subprocess.run([sys.executable, "-c", f"{code}assert 'torch' not in sys.modules"], check=True, timeout=120)


def test_without_gpus_auto_is_one_process_and_a_number_is_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "visible_gpus", lambda: 0)
    assert [processes_here(devices) for devices in (None, 1, "auto", 5)] == [1, 1, 1, 5]


def test_with_gpus_each_process_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "visible_gpus", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [processes_here(devices) for devices in (None, 1, "auto", 2)] == [1, 1, 2, 2]
    with pytest.raises(UsageError, match=r"--devices 5 wants .* this machine has 2: use --devices 2, or auto"):
        processes_here(5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES=1,3 leaves 2"):
        processes_here(3)


@pytest.mark.parametrize("devices", ["all", "0", 0, -1])
def test_what_devices_may_be(devices: object) -> None:
    with pytest.raises(UsageError, match=r"--devices is .*; it must be at least 1, or auto"):
        PretrainConfig(devices=devices)  # type: ignore[arg-type]


TOGETHER = """
import os, sys
rank, port, other_port, gpu, same_gpu = int(sys.argv[1]), *sys.argv[2:]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE="3", LOCAL_RANK=str(rank))
import torch.distributed as dist
from coma.training.processes.gpus import refuse_shared_gpus
refuse_shared_gpus(rank, 3, gpu)
dist.init_process_group("gloo")  # meets at the same port
dist.barrier()
os.environ["MASTER_PORT"] = other_port
try:
    refuse_shared_gpus(rank, 3, same_gpu)
except BaseException as error:
    print(repr(error))
"""


def test_ranks_on_one_gpu_are_refused_before_they_hang() -> None:
    ports = str(free_port()), str(free_port())
    gpus = (("a GPU-1", "b GPU-7"), ("a GPU-2", "a GPU-2"), ("b GPU-1", "a GPU-2"))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(rank), *ports, *gpus[rank]], stdout=subprocess.PIPE, text=True
        )
        for rank in range(3)
    ]
    said = ["ranks 1 and 2 have one GPU on a: start", "SystemExit(2)", "SystemExit(2)"]
    for process, words in zip(started, said, strict=True):
        assert words in process.communicate(timeout=300)[0]
