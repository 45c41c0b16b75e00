"""One of two real processes stops or dies: it is named, the other one goes too, and nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import lines

COMMAND = (
    "--model dyvit_tiny --image-size 32 --patch-size 2 --batch-size 4 --steps 100000 --workers 1 --devices 2"
)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(900)  # a busy machine takes minutes to start
@pytest.mark.parametrize(
    ("number", "limit_s", "said"),
    [(signal.SIGSTOP, 90.0, "stuck: rank 1 on"), (signal.SIGKILL, 1800.0, "lost another process")],
)
def test_one_stops_and_all_are_gone(
    data: Path, tmp_path: Path, number: int, limit_s: float, said: str
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "coma", "pretrain", str(data), "--out", str(run), *COMMAND.split()]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, "--stuck-after", str(limit_s)], stderr=log, stdout=log)
    try:
        while not (run / "metrics.jsonl").exists() or len(lines(run)) < 2:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        pids = [json.loads((run / "ranks" / f"rank-0000{rank}.json").read_text())["pid"] for rank in (0, 1)]
        os.kill(pids[1], number)
        assert process.wait(400) in (1, 137)
    finally:
        process.kill()
    assert said in (tmp_path / "log").read_text()
    assert not any(alive(pid) for pid in pids)
    if number == signal.SIGSTOP:
        assert "Thread" in (run / "ranks" / "rank-00000.txt").read_text()
