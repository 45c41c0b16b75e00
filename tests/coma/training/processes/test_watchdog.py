"""Who holds a run up is named; the others only wait for it."""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from coma.training.processes.watchdog import Pulse, Watchdog, laggards, stuck_message
from coma.training.processes.world import Place, World


def world(rank: int, size: int = 2) -> World:
    return World(Place(rank, rank, size, "localhost", 1), torch.device("cpu"))


def pulse(rank: int, step: int, phase: str, seconds: float = 65.0) -> Pulse:
    return Pulse(rank, f"node{rank}", 1, step, phase, time.time() - seconds)


def test_the_least_far_is_to_blame() -> None:
    waiting = [pulse(0, 8, "summing up"), pulse(2, 8, "forward and backward")]
    for phase, step in (("data", 8), ("saving", 7), ("starting", 0)):
        behind = pulse(1, step, phase)
        assert laggards([waiting[0], behind, waiting[1]]) == [behind]
    assert laggards(waiting) == [waiting[1]]


def test_the_line_names_rank_host_phase_step_and_seconds(tmp_path: Path) -> None:
    line = stuck_message([pulse(1, 8, "data")], 2, tmp_path, 60.0)
    assert line.startswith("stuck: rank 1 on node1 for 1 min 05 s in data of step 8 (--stuck-after 60)")
    assert str(tmp_path) in line
    everyone = stuck_message([pulse(0, 8, "summing up"), pulse(1, 8, "summing up")], 2, tmp_path, 60.0)
    assert "all of 2 ranks (rank 0 on node0, rank 1 on node1)" in everyone


STUCK = """
import logging, sys, time
from pathlib import Path
from typing import Any
from coma.training.processes.watchdog import Watchdog
from coma.training.processes.world import Place, World

def caught_in_here():
    time.sleep(100)

logging.basicConfig(format="%(message)s")
with Watchdog(Path(sys.argv[1]), World(Place(1, 1, 2, "localhost", 1), None), 1.0) as watchdog:
    for step in range(1, 4):
        watchdog.enter("data", step)
        time.sleep(0.6)
    caught_in_here()
"""


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (("summing up", 3), r"stuck: rank 1 on"),
        (("data", 2), r"stuck: rank 0 on node0 for .* in data of step 2"),
    ],
)
def test_a_stuck_process_ends_with_its_stacks_and_the_culprit_is_named(
    tmp_path: Path, other: tuple[str, int], said: str
) -> None:
    ranks = tmp_path / "ranks"
    ranks.mkdir()
    before = dataclasses.asdict(pulse(0, other[1], other[0]))
    (ranks / "rank-00000.json").write_text(json.dumps(before))
    done = subprocess.run(
        [sys.executable, "-c", STUCK, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.search(said, line)
    assert "caught_in_here" in (ranks / "rank-00001.txt").read_text()


def test_progress_is_left_alone_and_nothing_remains(tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / "rank-00007.json").write_text("{}")  # of a larger run that was killed
    with Watchdog(tmp_path, world(0), 1.0) as watchdog:
        for step in range(1, 16):
            watchdog.enter("data", step)
            time.sleep(0.1)
        told = json.loads((tmp_path / "ranks" / "rank-00000.json").read_text())
        assert told["phase"] == "data"
        assert told["step"] > 1
    assert not list(tmp_path.iterdir())
    with Watchdog(tmp_path, world(0), 0.0):
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("unable to start watchdog thread")])
def test_a_beat_without_memory_is_left_out_and_the_next_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    short: list[Exception] = [error]
    start = faulthandler.dump_traceback_later

    def start_if_there_is_memory(*args: Any, **options: Any) -> None:
        if short:
            raise short.pop()
        start(*args, **options)

    monkeypatch.setattr(faulthandler, "dump_traceback_later", start_if_there_is_memory)
    with Watchdog(tmp_path, world(0), 1.0) as watchdog:
        watchdog.enter("data", 7)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            (path,) = (tmp_path / "ranks").glob("*.json")
            if json.loads(path.read_text())["step"] == 7:
                break
            time.sleep(0.05)
            watchdog.enter("data", 7)
        else:
            pytest.fail("the watchdog has died")
    assert not short
