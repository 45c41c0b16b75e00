"""examples/plain_torch.py as a user runs it: alone and under torchrun, killed and started again."""

import contextlib
import io
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "plain_torch.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
RESTARTING = [*TORCHRUN, "--max-restarts=1", "--monitor-interval=0.1"]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    # Without it restarted processes look for the dead ones: https://github.com/pytorch/pytorch/issues/135712
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
STEPS, BATCH = 9, 12


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums in another order would be other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def arguments(data: Path, out: Path, steps: int, views: int) -> list[str]:
    sizes = ["--steps", str(steps), "--batch-size", str(BATCH), "--views", str(views), "--save-every", "2"]
    return [str(EXAMPLE), str(data), "--out", str(out), *sizes]


def here(data: Path, out: Path, steps: int = STEPS, views: int = 2) -> list[str]:
    """Run it in this process, and return what it says of each step."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(sys, "argv", arguments(data, out, steps, views))
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    return steps_in(said.getvalue())


def start(launcher: list[str], data: Path, out: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*launcher, *arguments(data, out, STEPS, views=2)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )


def steps_in(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("step ")]


def read_to(process: "subprocess.Popen[str]", step: int) -> list[str]:
    """What it says up to a step."""
    assert process.stdout is not None
    said: list[str] = []
    while not (said and said[-1].startswith(f"step {step} ")):
        line = process.stdout.readline()
        assert line, "it has ended"
        said += steps_in(line)
    return said


def rest(process: "subprocess.Popen[str]") -> list[str]:
    """What it says until it ends well."""
    said, _ = process.communicate()
    assert process.returncode == 0
    return steps_in(said)


def numbers(said: list[str]) -> list[int]:
    return [int(line.split()[1]) for line in said]


def weights(out: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(out / "checkpoint.pt", weights_only=True)
    assert (saved["step"], saved["stream"]["samples"]) == (STEPS, STEPS * BATCH)
    found: dict[str, torch.Tensor] = saved["network"]
    return found


def assert_same_weights(ours: Path, theirs: Path) -> None:
    expected = weights(theirs)
    assert all(torch.equal(value, expected[name]) for name, value in weights(ours).items())


@pytest.mark.parametrize("views", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_stopped_and_gone_on_it_takes_the_same_steps(data: Path, tmp_path: Path, views: int) -> None:
    whole = here(data, tmp_path / "whole", views=views)
    assert numbers(whole) == list(range(1, STEPS + 1))
    assert here(data, tmp_path / "halves", 5, views) == whole[:5]
    assert here(data, tmp_path / "halves", STEPS, views) == whole[5:]
    assert here(data, tmp_path / "halves", STEPS, views) == []
    assert_same_weights(tmp_path / "halves", tmp_path / "whole")


@pytest.mark.slow
def test_killed_and_started_again_it_takes_the_same_steps(data: Path, tmp_path: Path) -> None:
    whole = here(data, tmp_path / "whole")
    process = start([sys.executable], data, tmp_path / "killed")
    said = read_to(process, 5)
    process.kill()
    process.communicate()
    assert said == whole[:5]
    again = rest(start([sys.executable], data, tmp_path / "killed"))
    assert again in (whole[4:], whole[6:])  # it may have been quick to save once more
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")


def kill_one(torchrun: "subprocess.Popen[str]") -> None:
    """Kill one of the processes that torchrun has started."""
    path = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children")
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in path.read_text().split()}
    ranks = [int(pid) for pid, command in commands.items() if EXAMPLE.name in command]
    assert len(ranks) == 2
    os.kill(ranks[-1], signal.SIGKILL)


@pytest.mark.slow
def test_two_processes_and_then_one(data: Path, tmp_path: Path) -> None:
    said = rest(start(TORCHRUN, data, tmp_path / "two"))
    assert numbers(said) == list(range(1, STEPS + 1))
    weights(tmp_path / "two")
    here(data, tmp_path / "one")
    # Gone on by one process, it has nearly the losses of a run that was alone from the beginning.
    alone, joined = (
        [float(line.split()[-1]) for line in here(data, tmp_path / name, STEPS + 3)] for name in ("one", "two")
    )
    assert len(alone) == 3
    assert joined == pytest.approx(alone, rel=2e-3)


@pytest.mark.slow
def test_one_of_two_processes_is_killed_and_torchrun_starts_both_again(data: Path, tmp_path: Path) -> None:
    whole = rest(start(TORCHRUN, data, tmp_path / "whole"))
    process = start(RESTARTING, data, tmp_path / "killed")
    said = read_to(process, 5)
    kill_one(process)
    said += rest(process)
    again = next(at for at in range(1, len(said)) if numbers(said)[at] != at + 1)
    assert said[:again] == whole[:again]
    assert said[again:] == whole[numbers(said)[again] - 1 :]
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
