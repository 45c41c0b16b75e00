"""Starting processes: what they are told, whose exit code counts, and that none is left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coma.errors import ComaError, DataError, LaunchFailed, Preempted, UsageError
from coma.training.config.options import PretrainConfig
from coma.training.logs.metrics import Progress
from coma.training.processes import launch
from coma.training.processes.child import (
    CONFIG_NAME,
    FOLDER_PREFIX,
    HEARTBEAT_NAME,
    PROGRESS_NAME,
    ParentCommand,
    exit_code,
)
from coma.training.processes.launch import start_on_hosts


def processes(*codes: str) -> list[subprocess.Popen[bytes]]:
    return [subprocess.Popen([sys.executable, "-c", code], start_new_session=True) for code in codes]


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (["", ""], 0),
        (["raise SystemExit(75)", "raise SystemExit(75)"], 75),
        (["raise SystemExit(1)", "raise SystemExit(3)"], 3),  # rank 0 only lost its peer
        (["import os; os.kill(os.getpid(), 9)", "raise SystemExit(4)"], 4),
        (["import os; os.kill(os.getpid(), 9)", ""], 137),
    ],
)
def test_the_exit_code_is_of_the_process_that_knows_why(codes: list[str], expected: int) -> None:
    assert launch._wait_for_all(processes(*codes)) == expected


def test_one_failure_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_GRACE_S", 0.2)
    started = processes("raise SystemExit(2)", "import time; time.sleep(100)")
    began_s = time.monotonic()
    assert launch._wait_for_all(started) == 2
    launch._kill(started)
    assert time.monotonic() - began_s < 20
    assert started[1].poll() == -signal.SIGKILL


def test_signals_are_passed_on_and_handlers_given_back() -> None:
    code = "import signal, sys, time\nsignal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))\n"
    code += "print('ready', flush=True)\ntime.sleep(100)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    before = signal.getsignal(signal.SIGUSR1)
    with launch._on_signals(process.send_signal):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert process.wait(20) == 7
    assert signal.getsignal(signal.SIGUSR1) == before
    process.stdout.close()


def test_a_launched_process_gets_everything_by_one_file(tmp_path: Path) -> None:
    config = PretrainConfig(data=Path("shards-{000..003}"), devices=2, epochs=3)
    command = launch._command(config, tmp_path)
    assert command[0] == "coma"
    assert command[-2:] == ["--launched", str(tmp_path / "config.json")]
    told = PretrainConfig.load(Path(command[-1]))
    assert told == config, "also what started them, for the record of the run"


def test_a_run_that_was_lost_sight_of_is_no_success(tmp_path: Path) -> None:
    """pdsh was killed, and DeepSpeed's launcher ends with 0."""
    with pytest.raises(ComaError, match=r"ended without a result: .* the same command resumes"):
        launch._result(tmp_path, 0, 1)
    with pytest.raises(SystemExit, match="75"):
        launch._result(tmp_path, 75, 1)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (DataError("no shards in photos"), DataError("rank 1 on here: no shards in photos")),
        (Preempted("asked to stop"), Preempted("asked to stop")),
        (ValueError("a bug"), ComaError("a process of the run ended with exit code 70, and said why on stderr")),
        (KeyboardInterrupt(), KeyboardInterrupt()),
    ],
)
def test_what_a_process_raised_is_raised_by_the_caller(
    tmp_path: Path, raised: BaseException, expected: BaseException
) -> None:
    folder = tmp_path / f"{FOLDER_PREFIX}x"
    folder.mkdir()
    said = DataError(f"rank 1 on here: {raised}") if isinstance(raised, DataError) else raised
    for rank, error in ((0, SystemExit(exit_code(said))), (1, said)):
        with pytest.raises(type(error)), parent_command(folder, rank):
            raise error
    with pytest.raises(LaunchFailed) as failed:
        launch._result(folder, exit_code(raised), 2)
    error = failed.value.as_error()
    assert (type(error), str(error)) == (type(expected), str(expected))


def parent_command(folder: Path, rank: int) -> ParentCommand:
    (folder / HEARTBEAT_NAME).touch()
    return ParentCommand(folder / CONFIG_NAME, rank)


def test_progress_is_heard_line_by_line(tmp_path: Path) -> None:
    heard: list[Progress] = []
    listen = launch._listener(tmp_path, heard.append)
    lines = [json.dumps(dataclasses.asdict(Progress(step, 9, 0.5, 0.1, 3.0, 0.0, 1.0))) + "\n" for step in (1, 2)]
    for text, steps in ((lines[0] + lines[1][:9], [1]), ("", [1]), (lines[1][9:], [1, 2])):
        with (tmp_path / PROGRESS_NAME).open("a") as file:
            file.write(text)
        listen()
        assert [now.step for now in heard] == steps


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "no such file"),
        ("# none\n\n", "names no host"),
        ("a slots=2\nb slots=2\na slots=1\n", "names a twice"),
    ],
)
def test_hostfiles_that_deepspeed_would_trip_over(tmp_path: Path, content: str | None, named: str) -> None:
    hostfile = tmp_path / "hosts"
    if content is not None:
        hostfile.write_text(content)
    with pytest.raises(UsageError, match=named):
        start_on_hosts(PretrainConfig(hostfile=hostfile))


def test_what_a_hostfile_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostfile, tools = tmp_path / "hosts", tmp_path / "bin"
    hostfile.write_text("a slots=1\nb slots=1\n")
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    for tool in ("ssh", "pdsh"):
        with pytest.raises(UsageError, match=f"needs {tool}"):
            start_on_hosts(PretrainConfig(hostfile=hostfile))
        (tools / tool).touch(mode=0o755)
