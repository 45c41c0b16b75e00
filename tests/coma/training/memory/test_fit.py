"""A run that cannot fit is refused in a line, `auto` finds what fits, and a step out of memory says so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import environment
from small_runs import course, lines, small

from coma.errors import UsageError
from coma.training import pretrain
from coma.training.memory import fit as fit_module
from coma.training.memory.fit import passes_trial
from coma.training.processes.world import free_port

LIMITED = """
import re, resource, runpy, sys
from pathlib import Path
import coma.training.train  # torch, DeepSpeed and DALI, which take gigabytes of addresses

size = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv.pop(1)), resource.RLIM_INFINITY))
runpy.run_module("coma", run_name="__main__")
"""
TINY = ["--model", "dyvit_tiny", "--image-size", "224", "--workers", "1", "--steps", "1"]  # 50 MB an image


def limited(room: int, data: Path, run: Path, *options: object) -> subprocess.CompletedProcess[str]:
    """Pre-train in a process that can get `room` more bytes than its libraries take."""
    arguments = [str(room), "pretrain", str(data), "--out", str(run), *TINY, *map(str, options)]
    return subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**environment(), "MALLOC_ARENA_MAX": "1"},  # else each thread sets addresses aside
        timeout=900,
    )


def test_a_batch_that_cannot_fit_is_one_line_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    done = limited(4_500_000_000, data, tmp_path / "run", "--batch-size", 600)
    assert done.returncode == 2, done.stderr
    found = re.fullmatch(
        r"error: a step takes at least (29|30)\.\d GB of memory here \(.* for the network's state and 29\.\d GB for "
        r"600 images at a time\), and [34]\.\d GB are free: --micro-batch-size (\d\d) fits, and "
        r"--grad-checkpointing all takes less\n",
        done.stderr,
    )
    assert found, done.stderr
    assert not (tmp_path / "run").exists()


FOUND = """
import json, re, sys
from pathlib import Path
import coma.training.train  # before memory is looked at
from coma.training import PretrainConfig, pretrain
from coma.training.memory import fit

def memory(name):
    return 1024 * int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

base, free = [], int(sys.argv[3])

def few(processes):
    base.append(memory("VmRSS"))
    return free

fit.process_memory = few
run = Path(sys.argv[2])
pretrain(PretrainConfig(data=Path(sys.argv[1]), out=run, model="dyvit_tiny", batch_size=60, micro_batch_size="auto",
                        workers=1, steps=1))
print(json.loads((run / "config.json").read_text())["resolved"]["micro_batch_size"], memory("VmHWM") - base[0])
"""


@pytest.mark.slow
def test_auto_finds_what_then_fits(data: Path, tmp_path: Path) -> None:
    """60 images of 50 MB each, where 1.6 GB are free: the whole run takes less, and the next larger part would not."""
    free = 1_600_000_000
    command = [sys.executable, "-c", FOUND, str(data), str(tmp_path / "run"), str(free)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(), timeout=900)
    images, took = map(int, done.stdout.splitlines()[-1].split())  # after DeepSpeed's log
    assert images in (10, 12, 15)
    assert took < free


def test_a_run_that_fits_is_not_refused_though_memory_is_short_for_a_while(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([0, 0])
    monkeypatch.setattr(fit_module, "process_memory", lambda processes: next(looks, 10**12))
    monkeypatch.setattr(fit_module, "_POLL_S", 0.01)
    pretrain(small(data, tmp_path / "run", steps=1))
    assert next(looks, None) is None


def test_what_helps_depends_on_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "_PATIENCE_S", 0.0)
    for free, fields, way in (
        (0, {}, "use a smaller --model$"),
        (10_000_000, {"batch_size": 4000}, "give a smaller --batch-size, as even its images alone"),
        (10**9, {"batch_size": 4000}, "and --grad-checkpointing all takes less$"),
        (3 * 10**9, {"batch_size": 40_000, "grad_checkpointing": "all"}, r"--micro-batch-size \d+ fits$"),
    ):
        monkeypatch.setattr(fit_module, "process_memory", lambda processes, free=free: free)
        monkeypatch.setattr(fit_module, "_own_weights", lambda prepared: 100_000_000 if free else 0)  # noqa: B023
        with pytest.raises(UsageError, match=way):
            pretrain(small(data, tmp_path / "run", **{"batch_size": 4, **fields}))  # type: ignore[arg-type]


def test_a_trial_leaves_nothing_behind() -> None:
    """On a GPU it confirms a forecast; it is the same code here."""
    device, state = torch.device("cpu"), torch.get_rng_state()

    def build() -> torch.nn.Module:
        class Net(torch.nn.Linear):
            def forward(self, x: Any) -> Any:
                return super().forward(x).sum()

        return Net(8, 8)

    def example(images: int) -> tuple[torch.Tensor, ...]:
        return (torch.rand(images, 8),)

    assert passes_trial(build, example, torch.float32, device, 4, 1000)
    assert not passes_trial(build, example, torch.float32, device, 4, 1 << 50)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError, match="shapes"):
        passes_trial(build, lambda images: (torch.rand(images, 7),), torch.float32, device, 4, 1000)


SHORT = """
import os, re, resource, sys
from pathlib import Path
from coma.cli.faults import report
from coma.training import PretrainConfig, pretrain

def limit(progress):
    size = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    resource.setrlimit(resource.RLIMIT_AS, (size + 8_000_000, resource.RLIM_INFINITY))

config = PretrainConfig(data=Path(sys.argv[1]), out=Path(sys.argv[2]), model="dyvit_nano", patch_size=2, image_size=96,
                        start_size=32, steps=4, batch_size=32, workers=1, save_every=1)
try:
    pretrain(config, limit)
except BaseException as error:
    code = error.code if isinstance(error, SystemExit) else report(error)
    sys.stderr.flush()
    os._exit(code)  # an interpreter without memory does not end in order
"""


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_step_out_of_memory_is_one_line_and_all_processes_end(data: Path, tmp_path: Path, processes: int) -> None:
    """Crops grow after the limit was set, on rank 0."""
    port = str(free_port())
    ranks = []
    for rank in range(processes):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-c", SHORT, str(data), str(tmp_path / "run")]
        variables = {**environment(), **(place if processes > 1 else {})}
        ranks.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables))
    said = [process.communicate(timeout=900)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [1] * processes, said
    errors = [line for line in said[0].splitlines() if line.startswith("error:")]
    assert len(errors) == 1, said[0]
    assert re.search(
        rf"out of memory in step [234], of {32 // processes} images at a time on each device: "
        rf"give --micro-batch-size {16 // processes} or --grad-checkpointing all; ",
        errors[0],
    ), said[0]
    assert "Traceback" not in "".join(said)
    assert (tmp_path / "run/checkpoints/latest").is_file()


def test_checking_changes_no_result(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain(small(data, tmp_path / "checked", steps=2))
    monkeypatch.setattr("coma.training.train.fit", lambda prepared, world: prepared)
    pretrain(small(data, tmp_path / "unchecked", steps=2))
    assert course(tmp_path / "checked") == course(tmp_path / "unchecked")
    assert len(lines(tmp_path / "checked")) == 2
