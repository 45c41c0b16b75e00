"""One of two real processes stops or dies: it is named, the other one goes too, and nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from commands import alive, begin, command, wait_until
from small_runs import lines


@pytest.mark.slow
@pytest.mark.timeout(900)  # a busy machine takes minutes to start
@pytest.mark.parametrize(
    ("number", "limit_s", "said"),
    [(signal.SIGSTOP, 90.0, "stuck: rank 1 on"), (signal.SIGKILL, 1800.0, "lost another process")],
)
def test_one_stops_and_all_are_gone(data: Path, tmp_path: Path, number: int, limit_s: float, said: str) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    options = ["--steps", "100000", "--devices", "2", "--stuck-after", str(limit_s)]
    process = begin(command(data, run, *options), log)
    try:
        assert wait_until(lambda: len(lines(run)) >= 2, 600.0, process), log.read_text()
        pids = [json.loads((run / "ranks" / f"rank-0000{rank}.json").read_text())["pid"] for rank in (0, 1)]
        os.kill(pids[1], number)
        assert process.wait(400) in (1, 137)
    finally:
        process.kill()
    assert said in log.read_text()
    assert not any(alive(pid) for pid in pids)
    if number == signal.SIGSTOP:
        assert "Thread" in (run / "ranks" / "rank-00000.txt").read_text()
