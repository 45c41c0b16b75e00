"""Offload to a drive changes no number, and a drive that fails ends the run instead of spoiling it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import begin, command, ranks, wait_until
from devices import DEVICE
from safetensors.torch import save_file
from small_runs import course
from torch import Tensor, nn
from toy_engine import engine_of, resolved_run

from coma.errors import ComaError, UsageError
from coma.training.config.ds_config import DeepSpeedConfig, check_ds_config
from coma.training.engine.ema import ExponentialMovingAverage
from coma.training.engine.engine import dispose, full_weights, optimizer_step, set_learning_rate, set_weights
from coma.training.engine.nvme import SwapFiles, SwapFolder, check_nvme_folder
from coma.training.engine.optimizer_state import optimizer_state, restore_optimizer
from coma.training.memory.state import state_memory
from coma.training.processes.world import Place, World, joined

START_S = 400.0
WORLD = World(Place(0, 0, 1, "", 0), torch.device(DEVICE))


@pytest.fixture
def alone() -> Iterator[None]:
    with joined(None):
        yield


class Wide(nn.Module):
    """Large enough to be put on a drive, and cut such that gradients lie at odd places in their group."""

    def __init__(self) -> None:
        super().__init__()
        self.odd = nn.Linear(301, 7)
        self.wide = nn.Linear(301, 1201)
        self.narrow = nn.Linear(1201, 303)
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.zero.device)
        return (self.narrow(torch.relu(self.wide(x))).square().mean() + self.odd(x).square().mean()).float()


def offload(folder: Path, device: str, **options: Any) -> dict[str, Any]:
    section = {"device": device, "nvme_path": str(folder), **options}
    return {"stage": 3, "sub_group_size": 400_000, "offload_optimizer": section}


def configured(zero: dict[str, Any]) -> DeepSpeedConfig:
    return check_ds_config({"zero_optimization": zero}, "f")


def train(engine: Any, average: ExponentialMovingAverage, steps: range) -> None:
    for step in steps:
        set_learning_rate(engine, 0.01)
        x = torch.randn(4, 301, generator=torch.Generator().manual_seed(step))
        engine.backward(engine(x * float("nan") if step == 2 else x))
        _, applied = optimizer_step(engine)
        assert applied == (step != 2)
        if applied:
            average.update(step)


def trained(folder: Path, before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Tensor]]:
    """Weights, their average and Adam's state after six steps, with a checkpoint in between."""
    torch.manual_seed(0)
    engine = engine_of(Wide(), configured(before))
    train(engine, ExponentialMovingAverage(engine, 0.9), range(1, 4))
    weights = full_weights(engine)
    save_file(optimizer_state(engine), folder / "state")
    dispose(engine)
    engine = engine_of(Wide(), configured(after))
    set_weights(engine, weights)
    restore_optimizer(engine, weights, [folder / "state"])
    average = ExponentialMovingAverage(engine, 0.9)
    train(engine, average, range(4, 7))
    weights = full_weights(engine)
    states = [weights, average.gather(weights, WORLD), optimizer_state(engine)]
    dispose(engine)
    return states


@pytest.mark.gpu_too
@pytest.mark.parametrize("way", ["to a drive", "from a drive", "stays", "pipelined"])
def test_a_drive_gives_back_what_it_was_given(alone: None, tmp_path: Path, way: str) -> None:
    host, drive = offload(tmp_path, "cpu"), offload(tmp_path, "nvme")
    before, after = {
        "to a drive": (host, drive),
        "from a drive": (drive, host),
        "stays": (drive, drive),
        "pipelined": (offload(tmp_path, "nvme", pipeline_read=True, pipeline_write=True),) * 2,
    }[way]
    for state, expected in zip(trained(tmp_path, before, after), trained(tmp_path, host, host), strict=True):
        assert state.keys() == expected.keys()
        for name, value in state.items():
            assert torch.equal(value, expected[name]), name
    assert list(tmp_path.iterdir()) == [tmp_path / "state"]


def test_files_are_as_large_as_foreseen(alone: None, tmp_path: Path) -> None:
    zero = offload(tmp_path, "nvme")
    model = Wide()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    engine = engine_of(model, configured(zero))
    train(engine, ExponentialMovingAverage(engine, 0.9), range(1, 2))
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.swp"))
    dispose(engine)
    foreseen = state_memory(parameters, resolved_run("zero3", device="cpu", zero_optimization=zero))
    assert written == pytest.approx(foreseen.swap_files, rel=0.02)
    assert foreseen.nvme == 12 * parameters
    assert foreseen.host == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_killed_on_the_way_are_those_that_keep_all_in_memory(data: Path, tmp_path: Path) -> None:
    options = ["--steps", "8", "--save-every", "2", "--devices", "2", "--model", "dyvit_tiny", "--ds-config"]
    swap, log = tmp_path / "swap", tmp_path / "log"
    swap.mkdir()
    killed = command(data, tmp_path / "killed", *options, "zero3_nvme")
    process = begin(killed, log, TMPDIR=str(swap))
    assert wait_until(lambda: (tmp_path / "killed" / "checkpoints" / "step-000002").exists(), START_S, process)
    for pid in ranks(process, 2):
        os.kill(pid, signal.SIGKILL)
    process.wait(60)
    assert len(list(swap.glob("coma-swap-*"))) == 2
    assert begin(killed, log, TMPDIR=str(swap)).wait(START_S) == 0, log.read_text()
    assert not list(swap.glob("coma-swap-*"))
    whole = command(data, tmp_path / "whole", *options, "zero3_offload")
    assert begin(whole, tmp_path / "log-whole").wait(START_S) == 0, (tmp_path / "log-whole").read_text()
    assert course(tmp_path / "killed") == course(tmp_path / "whole")


def test_errors_of_a_drive_are_told(tmp_path: Path) -> None:
    files, values = SwapFiles(), torch.arange(1000.0)
    files.async_pwrite(values, str(tmp_path / "a"), 0)
    files.async_pwrite(values[1:], str(tmp_path / "b"), 0)
    assert files.wait() == 2
    back = torch.zeros(1003)[3:]
    files.async_pread(back, str(tmp_path / "a"), 0)
    assert files.wait() == 1
    assert torch.equal(back, values)
    files.async_pread(back, str(tmp_path / "b"), 0)
    with pytest.raises(ComaError, match=r"offload to .*/b failed \(no data available\)"):
        files.wait()
    files.async_pread(back, str(tmp_path / "c"), 0)
    with pytest.raises(ComaError, match=r"/c failed \(no such file"):
        files.wait()
    files.async_pwrite(values, "/dev/full", 0)
    with pytest.raises(ComaError, match=r"/dev/full failed \(no space left"):
        files.wait()
    files.async_pread(back, str(tmp_path / "a"), 0)
    assert files.wait() == 1


def test_folders_of_the_dead_are_swept_up_and_nothing_else(tmp_path: Path) -> None:
    zero = offload(tmp_path, "nvme")
    (tmp_path / "mine").mkdir()
    script = (
        "import os\nfrom coma.training.config.ds_config import check_ds_config\n"
        "from coma.training.engine.nvme import SwapFolder\n"
        f"SwapFolder(check_ds_config({{'zero_optimization': {zero!r}}}, 'f'))\nos._exit(9)"
    )
    for _ in range(2):  # the second sweeps up what the first left
        subprocess.run([sys.executable, "-c", script], check=False)
    assert len(list(tmp_path.glob("coma-swap-*"))) == 1
    config = configured(zero)
    first, second = SwapFolder(config), SwapFolder(config)
    assert len(list(tmp_path.glob("coma-swap-*"))) == 2
    assert {first.config.nvme_path, second.config.nvme_path} == {str(path) for path in tmp_path.glob("coma-swap-*")}
    first.remove()
    second.remove()
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
    assert config == configured(offload(tmp_path, "nvme"))


def test_what_cannot_work_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zero = offload(tmp_path / "missing", "nvme")
    with pytest.raises(UsageError, match=r"missing is no folder.*'zero_optimization.offload_optimizer.nvme_path'"):
        check_nvme_folder(configured(zero))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    del zero["offload_optimizer"]["nvme_path"]
    check_nvme_folder(configured(zero))
    zero["offload_optimizer"] |= {"buffer_count": 7, "pipeline_read": True}
    with pytest.raises(UsageError, match=r"buffer_count' is 7, and AdamW takes 8 here"):
        configured(zero)
