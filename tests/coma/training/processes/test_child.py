"""What a process of a run notices of the command that started it: real files, a real parent, short limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import alive, wait_until

from coma.errors import DataError, Preempted
from coma.training.processes.child import PARENT_VARIABLE, ParentCommand, exit_code, exits


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration file of a command that is alive."""
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    folder = tmp_path / ".coma-launch-1"
    folder.mkdir()
    (folder / "config.json").touch()
    (folder / "heartbeat").touch()
    return folder / "config.json"


def test_a_heartbeat_that_stops_is_a_wish_to_stop_and_the_folder_goes(launched: Path) -> None:
    limit_s = 0.5
    with ParentCommand(launched, rank=0, gone_after_s=limit_s) as parent:
        for number in range(6):  # of a machine whose clock is years behind
            os.utime(launched.parent / "heartbeat", (number, number))
            time.sleep(limit_s / 4)
            assert not parent.wants_stop()
        wait_until(parent.wants_stop, 20.0)
    assert not launched.parent.exists()


def test_a_folder_that_is_gone_counts_at_once(launched: Path) -> None:
    with ParentCommand(launched, rank=0, gone_after_s=0.01) as parent:
        (launched.parent / "heartbeat").unlink()
        wait_until(parent.wants_stop, 20.0)
        parent.return_result({"steps": 1})


def test_a_request_is_heard_and_the_exit_code_left(launched: Path) -> None:
    with ParentCommand(launched, rank=3) as parent:
        assert not parent.wants_stop()
        (launched.parent / "stop").touch()
        wait_until(parent.wants_stop, 20.0)
    with pytest.raises(Preempted), ParentCommand(launched, rank=1):
        raise Preempted("asked to stop")
    assert [code for code, _ in exits(launched.parent, 4)] == [75, 0]  # of ranks 1 and 3
    errors = (DataError("no"), SystemExit(4), SystemExit(), OSError(28, "full"), ValueError())
    assert [exit_code(error) for error in errors] == [3, 4, 0, 1, 70]


def test_a_configuration_given_by_hand_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    for launched in (tmp_path / "config.json", None):
        with ParentCommand(launched, rank=0, gone_after_s=0.0) as parent:
            assert not parent.wants_stop()
            parent.return_result({})
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


CHILD = """
import sys, time
from pathlib import Path
from coma.training.processes.child import ParentCommand
from coma.training.processes.signals import StopRequests

parent = ParentCommand(Path(sys.argv[1]), 0)
with StopRequests() as stop, parent:
    print("ready", flush=True)
    while not (stop.preempted and parent.wants_stop()):
        time.sleep(0.05)
"""
PARENT = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], env={**os.environ, "COMA_LAUNCHED_BY": str(os.getpid())})
time.sleep(100)
"""


def test_a_killed_parent_is_noticed_at_once_and_cleaned_up_after(launched: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD, str(launched)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        (child,) = (int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split())
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not alive(child), 20.0)
    assert not launched.parent.exists()
