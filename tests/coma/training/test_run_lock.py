"""One writer a run folder: real processes hold it and die."""

from __future__ import annotations

import errno
import fcntl
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import begin, command, wait_until
from small_runs import small

from coma.errors import UsageError
from coma.training import pretrain, run_lock
from coma.training.run_folder import LOCK_NAME, RunFolder
from coma.training.run_lock import RunLock, take_run

HOLD = """
import sys, time
from pathlib import Path
from coma.training.run_lock import RunLock

with RunLock() as lock:
    print(lock.acquire(Path(sys.argv[1])), flush=True)
    time.sleep(float(sys.argv[2]))
"""


@contextmanager
def held_elsewhere(run: Path, for_s: float = 100.0) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run), str(for_s)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_run_waits_and_is_told_who_has_the_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("coma"), "propagate", True)
    caplog.set_level(logging.INFO, logger="coma")
    run, config = tmp_path / "run", small(data, tmp_path / "run", steps=1)
    monkeypatch.setattr(take_run, "__defaults__", (0.8, lambda: False))
    with held_elsewhere(run) as holder:
        with pytest.raises(UsageError, match=rf"{run} .* process {holder.pid} on .*give another --out"):
            pretrain(config)
        assert [path.name for path in run.iterdir()] == [LOCK_NAME]
        waiting = [record.message for record in caplog.records if "waiting for its end" in record.message]
        assert len(waiting) == 1
    assert pretrain(config)["finished"]  # kill -9 has freed it
    with held_elsewhere(run):
        assert pretrain(config)["finished"]  # nothing to write: nothing to wait for


def test_a_run_that_was_waited_for_and_came_to_its_end_is_not_begun_again(tmp_path: Path) -> None:
    run, after = RunFolder(tmp_path / "run", begun=True), RunFolder(tmp_path / "run-2")
    answers = iter([run, run])
    with RunLock() as lock, held_elsewhere(run.path, for_s=100.0):
        found = take_run(lambda: next(answers, after), lock, wait_s=60.0)
        assert found == RunFolder(tmp_path / "run", begun=True, finished=True)
    assert not after.path.exists()


@pytest.mark.slow
def test_who_waits_can_be_asked_to_stop(data: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    with held_elsewhere(run) as holder:
        process = begin(command(data, run, "--steps", "1"), log)
        assert wait_until(lambda: b"waiting for its end" in log.read_bytes(), 200.0, process)
        process.terminate()
        assert process.wait(60) == 75
    last = log.read_text().splitlines()[-1]
    assert last.startswith(f"error: asked to stop while {run} was being written to by process {holder.pid} on")
    assert [path.name for path in run.iterdir()] == [LOCK_NAME]


def test_a_folder_that_changed_before_it_was_ours_is_looked_at_again(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "first"), RunFolder(tmp_path / "second", begun=True)
    answers = iter([first, second, second, second])
    with RunLock() as lock, held_elsewhere(second.path, for_s=1.0):
        assert take_run(lambda: next(answers, second), lock, wait_s=60.0) == second
        with RunLock() as other:
            assert other.acquire(first.path)
            assert not other.acquire(second.path)
        lock.close()
        with RunLock() as other:
            assert other.acquire(second.path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        RunLock() as lock,
        pytest.raises(UsageError, match=r"file/run cannot be written to \(not a directory\)"),
    ):
        lock.acquire(tmp_path / "file" / "run")


def test_a_file_system_without_locks_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("coma"), "propagate", True)

    def none_here(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none_here)
    with RunLock() as lock:
        assert take_run(lambda: RunFolder(tmp_path / "run"), lock) == RunFolder(tmp_path / "run")
    assert "has no locks" in caplog.text
    assert run_lock.holder(tmp_path / "run").startswith("process ")
