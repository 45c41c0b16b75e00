"""kill -9 at any moment, again and again: each time the same command goes on, and nothing differs in the end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from commands import all_gone, begin, command, descendants, ranks, wait_until
from small_runs import course, same_weights

STEPS = 100
OPTIONS = ["--steps", str(STEPS), "--save-every", "3"]
START_S = 400.0
"""A busy machine takes its time."""
SAVING = "checkpoints/.step-*.tmp"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("devices", "kills"), [(1, 15), (2, 15)])
def test_killed_at_random_instants_is_to_the_bit_never_killed(
    data: Path, tmp_path: Path, devices: int, kills: int
) -> None:
    run, log, draw = tmp_path / "killed", tmp_path / "log", random.Random(devices)
    again = command(data, run, *OPTIONS, "--devices", str(devices))
    where = Counter(kill_one(again, run, log, devices, draw) for _ in range(kills))
    assert begin(again, log).wait(START_S) == 0, log.read_text()
    whole = command(data, tmp_path / "whole", *OPTIONS, "--devices", str(devices))
    assert begin(whole, tmp_path / "log-whole").wait(START_S) == 0, (tmp_path / "log-whole").read_text()

    assert [step for step, *_ in course(run)] == list(range(1, STEPS + 1))
    assert course(run) == course(tmp_path / "whole")
    assert same_weights(run, tmp_path / "whole")
    assert not list((run / "checkpoints").glob(".*"))
    assert (run / "report.html").exists()
    assert "Traceback" not in log.read_text()
    print(f"{devices} process(es), killed {dict(where)}")
    assert where["saving"] >= kills // 5


def kill_one(again: list[str], run: Path, log: Path, devices: int, draw: random.Random) -> str:
    """Begin, kill a process of it at a moment drawn at random, see all of it gone, return what it was doing."""
    begun_s = time.time()
    process = begin(again, log)
    moment = draw.choice(["starting", "training", "saving", "saving"])
    if moment == "starting":
        time.sleep(draw.uniform(0.0, 8.0))
        wait_until(lambda: len(ranks(process, devices)) == devices, START_S, process)
    elif moment == "training":
        wait_until(lambda: touched(run, "metrics.jsonl", begun_s), START_S, process)
        time.sleep(draw.uniform(0.0, 0.8))
    else:
        wait_until(lambda: touched(run, SAVING, begun_s), START_S, process)
        time.sleep(draw.uniform(0.0, 0.06))
    assert process.poll() is None, log.read_text()
    processes = [process.pid, *descendants(process.pid)]
    now = "saving" if touched(run, SAVING, begun_s) else "training" if moment == "saving" else moment
    victims = ranks(process, devices) + [process.pid] * (devices > 1)  # the launcher as well
    os.kill(draw.choice(victims), signal.SIGKILL)
    process.wait(60)
    all_gone(processes)
    return now


def touched(run: Path, pattern: str, since_s: float) -> bool:
    """Whether there is a file that this session has written to; an earlier one's may lie there still."""
    for path in run.glob(pattern):
        with contextlib.suppress(OSError):
            if path.stat().st_ctime > since_s:
                return True
    return False
