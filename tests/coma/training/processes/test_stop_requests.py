from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from coma.training.processes.signals import StopRequests


def test_ctrl_c_interrupts_at_once_until_there_is_something_to_save_and_then_the_second_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    with StopRequests() as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        stop.steps_begin()
        os.kill(os.getpid(), signal.SIGINT)
        now_s = 100.5
        os.kill(os.getpid(), signal.SIGINT)  # one press, passed on twice
        assert (stop.interrupted, stop.preempted) == (True, False)
        now_s = 102.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_request_before_the_first_step_is_not_lost(tmp_path: Path) -> None:
    with StopRequests() as stop:
        assert not stop.preempted
        os.kill(os.getpid(), signal.SIGTERM)
        stop.steps_begin()
        assert stop.preempted
    with StopRequests() as stop:
        stop.look_for([tmp_path / "stop", tmp_path / "other"])
        assert not stop.preempted
        (tmp_path / "other").touch()
        assert stop.preempted


def test_a_file_of_an_earlier_session_is_forgotten_and_a_newer_one_obeyed(tmp_path: Path) -> None:
    file = tmp_path / "stop"
    with StopRequests() as stop:
        stop.forget(file)
        file.touch()
        os.utime(file, (time.time() - 60, time.time() - 60))
        stop.forget(file)
        assert not file.exists()
        os.utime(file.open("w").name, (time.time() + 1, time.time() + 1))
        stop.forget(file)
        stop.look_for([file])
        assert stop.preempted
