from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from coma.errors import ComaError, UsageError
from coma.training.processes.world import Place, find_place, first_host, free_port, joined

SRUN = {
    "SLURM_JOB_ID": "123456",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
}


def test_alone_unless_a_launcher_says_otherwise() -> None:
    assert find_place({}) is None
    assert find_place({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}) is None  # sbatch, no srun
    assert find_place({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None


def test_torchruns_environment_is_joined() -> None:
    place = Place(3, 1, 4, "node0", 29500)
    assert find_place(place.environment()) == place
    with pytest.raises(UsageError, match="MASTER_PORT"):
        find_place({key: value for key, value in place.environment().items() if key != "MASTER_PORT"})


def test_sruns_environment_is_translated() -> None:
    place = find_place(SRUN)
    assert place is not None
    assert (place.rank, place.local_rank, place.world_size, place.master_address) == (9, 1, 16, "gpu003")
    assert place == find_place({**SRUN, "SLURM_PROCID": "9"})
    assert 1024 < place.master_port < 65_536
    other_job = find_place({**SRUN, "SLURM_JOB_ID": "123457"})
    assert other_job is not None
    assert other_job.master_port != place.master_port


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[003-007,012],login1", "gpu003"),
        ("gpu[7,9]", "gpu7"),
        ("rack2-gpu[1-2]-x", "rack2-gpu1-x"),
    ],
)
def test_first_host_of_slurms_notation(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


def test_a_free_port_can_be_bound() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))


def test_joining_alone_leaves_no_trace(capfd: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    with joined(None) as world:
        assert (world.rank, world.size, world.is_rank0) == (0, 1, True)
        assert world.sum([1.5, -2.0]) == [1.5, -2.0]
        assert world.gather("mine") == ["mine"]
        assert world.run_on_rank0(lambda: 7) == 7
        print("a callback's")
    print("a result")
    sys.stdout.flush()
    assert capfd.readouterr().out == "a callback's\na result\n"
    launcher = {key: os.environ.get(key) for key in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    assert launcher == {key: before.get(key) for key in launcher}


TOGETHER = """
import sys
import torch
import torch.distributed as dist
from coma.errors import DataError
from coma.training.processes.world import Place, World

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=2)
world = World(Place(rank, rank, 2, "localhost", 1), torch.device("cpu"))

def act(failing):
    if rank in failing:
        raise DataError(f"nothing here, says {rank}")
    return rank

try:
    print(world.run_on_all(lambda: act(())), flush=True)
    try:
        world.run_on_all(lambda: act((0, 1)))
    except BaseException as error:
        print(repr(error), flush=True)
    world.run_on_all(lambda: act((1,)))
except BaseException as error:
    print(repr(error), flush=True)
"""


def test_all_leave_when_one_fails_and_it_alone_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TOGETHER]
    both = [
        subprocess.Popen([*command, str(rank), f"file://{tmp_path / 'meet'}"], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=120)[0].splitlines() for process in both]
    said = [[line for line in output if not line.startswith("[Gloo]")] for output in outputs]
    assert said[0] == ["0", "DataError('nothing here, says 0')", "SystemExit(3)"]
    host = socket.gethostname()
    assert said[1] == ["1", "SystemExit(3)", f"DataError('rank 1 on {host}: nothing here, says 1')"]


APART = """
import sys
from coma.training.processes.world import Place, joined

rank, port, failing, agreement = map(int, sys.argv[1:])

def act():
    if rank == failing:
        raise LookupError("no such\\nthing")

try:
    with joined(Place(rank, rank, 2, "127.0.0.1", port)) as world:
        (world.run_on_rank0 if agreement == 0 else world.run_on_all)(act)
except BaseException as error:
    print(repr(error))
"""


@pytest.mark.parametrize(("failing", "agreement"), [(0, 0), (1, 1), pytest.param(0, 1, marks=pytest.mark.slow)])
def test_an_error_that_nobody_foresaw_ends_all_with_one_line(failing: int, agreement: int) -> None:
    words = [str(free_port()), str(failing), str(agreement)]
    both = [
        subprocess.Popen([sys.executable, "-c", APART, str(rank), *words], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=200)[0].strip() for process in both]
    host = socket.gethostname()
    line = f"ComaError('rank {failing} on {host} failed: LookupError: no such thing (coma -v shows where)')"
    assert said[failing] == line
    assert said[1 - failing] == "SystemExit(70)"


def test_too_little_memory_on_a_gpu_is_one_line() -> None:
    with pytest.raises(ComaError, match=r"rank 0 on .* is out of memory: .*coma plan"), joined(None):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
