"""Asked to stop in every way there is: each saves, leaves nothing running, and the same command goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import all_gone, begin, command, descendants, ranks, wait_until
from small_runs import course, same_weights

from coma.runs.read import latest_checkpoint

STEPS = 60
OPTIONS = ["--steps", str(STEPS), "--save-every", "50"]
START_S = 400.0

Processes = list[subprocess.Popen[bytes]]


def to_launcher(number: int) -> Callable[[Processes, Path], None]:
    return lambda processes, run: processes[0].send_signal(number)


def to_rank_1(number: int) -> Callable[[Processes, Path], None]:
    return lambda processes, run: os.kill(ranks(processes[0], 2)[1], number)


def to_all(number: int) -> Callable[[Processes, Path], None]:
    def send(processes: Processes, run: Path) -> None:
        for process in [process.pid for process in processes] + descendants(processes[0].pid):
            os.kill(process, number)

    return send


def stop_file(processes: Processes, run: Path) -> None:
    (run / "stop").touch()


WAYS: list[tuple[Callable[[Processes, Path], None], int, bool]] = [
    (to_launcher(signal.SIGTERM), 75, False),
    (to_rank_1(signal.SIGTERM), 75, False),
    (to_all(signal.SIGTERM), 75, False),
    (to_launcher(signal.SIGUSR1), 75, False),
    (to_launcher(signal.SIGINT), 130, False),
    (to_all(signal.SIGINT), 130, False),
    (stop_file, 75, False),
    (to_all(signal.SIGUSR1), 75, True),  # what `#SBATCH --signal=USR1@60` does to srun's tasks
    (stop_file, 75, True),
]
"""What is done to a run, its exit code, and whether Slurm had started it."""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_stopped_in_every_way_is_to_the_bit_never_stopped(data: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "stopped", tmp_path / "log"
    alone = command(data, run, *OPTIONS)
    for number, (stop, exit_code, slurm) in enumerate(WAYS):
        before = steps(run)
        processes = srun(alone, log) if slurm else [begin([*alone, "--devices", "2"], log)]
        wait_until(lambda before=before: steps(run) > before + 1, START_S, processes[0])  # type: ignore[misc]
        pids = [pid for process in processes for pid in (process.pid, *descendants(process.pid))]
        stop(processes, run)
        assert [process.wait(60) for process in processes] == [exit_code] * len(processes), (
            number,
            log.read_text(),
        )
        all_gone(pids)
        checkpoint = latest_checkpoint(run)
        assert checkpoint is not None
        assert checkpoint.name == f"step-{steps(run):06}"
        assert not (run / "stop").exists()
    (run / "stop").touch()  # after the end of a session: means nothing to the next one
    assert begin([*alone, "--devices", "2"], log).wait(START_S) == 0, log.read_text()
    assert "Traceback" not in log.read_text()

    whole = tmp_path / "whole"
    assert begin(command(data, whole, *OPTIONS, "--devices", "2"), tmp_path / "log-whole").wait(START_S) == 0
    assert course(run) == course(whole)
    assert same_weights(run, whole)


def steps(run: Path) -> int:
    """How many lines of steps a run has."""
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def srun(arguments: list[str], log: Path) -> Processes:
    """Start a step of two tasks with the variables that srun gives each."""
    port = next(port for port in range(20_000, 40_000) if is_free(port))
    common = {
        "SLURM_JOB_ID": str(port - 20_000),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
    }
    return [begin(arguments, log, **common, SLURM_PROCID=str(task), SLURM_LOCALID=str(task)) for task in (0, 1)]


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
