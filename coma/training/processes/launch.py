"""Start the processes of a run: several on this machine, or one DeepSpeed launcher for several machines.

Each process is this command again, such as `coma pretrain --launched FILE`, where FILE holds the whole configuration:
it survives the remote shells of launchers, which expand arguments and drop the environment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from coma.errors import ComaError, Preempted, UsageError
from coma.training.config.options import RunConfig
from coma.training.processes.child import (
    CONFIG_NAME,
    FOLDER_PREFIX,
    HEARTBEAT_NAME,
    PARENT_VARIABLE,
    RESULT_NAME,
    STOP_NAME,
    exit_codes,
)
from coma.training.processes.world import Place, free_port

logger = logging.getLogger(__name__)

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_GRACE_S = 5.0
_CONNECT_S = 20
_POLL_S = 0.05
_BEAT_S = 5.0


def start_here(config: RunConfig, devices: int) -> dict[str, Any]:
    """Run `config` on `devices` processes of this machine and return what rank 0 returned.

    Signals are passed on, the first failure ends all, and none outlives this process.

    Raises:
        SystemExit: with the exit code of the process that failed, which has said why.
    """
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as name:
        folder = Path(name)
        command = _command(config, folder)
        port = free_port()
        threads = max(1, (os.cpu_count() or 1) // devices)
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", *command],
                env={
                    "OMP_NUM_THREADS": str(threads),
                    **os.environ,
                    **Place(rank, rank, devices, "127.0.0.1", port).environment(),
                    PARENT_VARIABLE: str(os.getpid()),
                },
                start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
            )
            for rank in range(devices)
        ]
        try:
            with _passing_on_signals(processes):
                exit_code = _wait_for_all(processes)
        finally:
            _kill(processes)
        return _result(folder, exit_code)


def start_on_hosts(config: RunConfig) -> dict[str, Any]:
    """Run `config` through DeepSpeed's launcher on its hostfile's machines, which must share this folder.

    Should this process be killed, the others find the heartbeat missing, save and leave.

    Raises:
        UsageError: there is no such hostfile, it names a host twice, or one that ssh does not reach.
        SystemExit: with the exit code of the process that failed, 1 if it was killed.
    """
    assert config.hostfile is not None
    slots = read_hostfile(config.hostfile)
    _check_reachable(config.hostfile, list(slots))
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, dir=Path.cwd()) as name:
        folder = Path(name)
        heartbeat = folder / HEARTBEAT_NAME
        heartbeat.touch()
        launcher = ["deepspeed.launcher.runner", "--hostfile", str(config.hostfile.absolute())]
        launcher += ["--master_port", str(free_port()), "--no_local_rank", "--module"]
        process = subprocess.Popen(
            [sys.executable, "-m", *launcher, *_command(config, folder)],
            stdout=sys.stderr,  # its log; the result comes back by a file
            start_new_session=True,
        )
        try:
            # The launcher would die of a signal and leave the ranks running: they look for this file instead.
            signals: list[int] = []

            def stop(number: int) -> None:
                signals.append(number)
                (folder / STOP_NAME).touch()

            with _on_signals(stop):
                launcher_failed = _wait_for_all([process], heartbeat.touch)
        finally:
            _kill([process])
        # The launcher's own code is of whatever it killed.
        exit_code = _telling(exit_codes(folder, sum(slots.values()))) or int(launcher_failed > 0)
        if exit_code == Preempted.exit_code and signal.SIGINT in signals:
            raise KeyboardInterrupt
        return _result(folder, exit_code)


def _check_reachable(hostfile: Path, hosts: Sequence[str]) -> None:
    """DeepSpeed asks the first host only; were another one missing, the rest would wait for it for minutes."""
    for tool in ["ssh", "pdsh"][: len(hosts)]:
        if shutil.which(tool) is None:
            raise UsageError(
                f"--hostfile {hostfile} needs {tool}: install it, or use torchrun on each machine"
            )
    ssh = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S}"]
    asked = {
        host: subprocess.Popen(
            [*ssh, host, "true"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for host in hosts
    }
    answers = {host: (process.communicate()[1], process.returncode) for host, process in asked.items()}
    for host, (said, code) in answers.items():
        if code:
            reason = " ".join(said.decode(errors="replace").split()) or f"exit code {code}"
            raise UsageError(
                f"--hostfile {hostfile}: cannot run commands on {host} ({reason}): "
                f"`ssh {host} true` must work without a password"
            )


def _command(config: RunConfig, folder: Path) -> list[str]:
    path = folder / CONFIG_NAME
    dataclasses.replace(config, devices=None, hostfile=None).save(path)
    level = logging.getLogger("coma").getEffectiveLevel()
    verbosity = ["-v"] if level <= logging.DEBUG else ["-q"] if level > logging.INFO else []
    return ["coma", *verbosity, config.command, "--launched", str(path)]


def _result(folder: Path, exit_code: int) -> dict[str, Any]:
    if exit_code:
        raise SystemExit(exit_code)
    try:
        result: dict[str, Any] = json.loads((folder / RESULT_NAME).read_text())
    except FileNotFoundError:  # pdsh was killed: to DeepSpeed's launcher that is no failure
        raise ComaError(
            "the processes of the run were lost sight of; the same command goes on from the last checkpoint"
        ) from None
    return result


def _wait_for_all(
    processes: Sequence[subprocess.Popen[bytes]], beat: Callable[[], None] = lambda: None
) -> int:
    """Wait until all have ended, with a beat now and then, and return the exit code that tells most.

    Once one has failed, the others are given a moment.
    """
    deadline, next_beat = float("inf"), 0.0
    while (now := time.monotonic()) < deadline:
        if now >= next_beat:
            next_beat = now + _BEAT_S
            with contextlib.suppress(OSError):
                beat()
        codes = [process.poll() for process in processes]
        if None not in codes:
            break
        if any(codes) and deadline == float("inf"):
            deadline = now + _GRACE_S
        time.sleep(_POLL_S)
    return _telling([code if code > 0 else 128 - code for process in processes if (code := process.poll())])


def _telling(codes: Sequence[int]) -> int:
    """The process that knows why it ended says so by its code; one that merely lost its peers says 1."""
    return min(filter(None, codes), key=lambda code: code == 1 or code > 128, default=0)


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def _passing_on_signals(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    def pass_on(number: int) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    with _on_signals(pass_on):
        yield


@contextlib.contextmanager
def _on_signals(act: Any) -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        act(number)

    try:
        before = {number: signal.signal(number, handle) for number in _FORWARDED}
    except ValueError:  # not the main thread, which alone may handle signals
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_hostfile(hostfile: Path) -> dict[str, int]:
    """Return how many processes each host of a DeepSpeed hostfile takes.

    Raises:
        UsageError: it is no file, or names no host, or one twice.
    """
    if not hostfile.is_file():
        raise UsageError(f"--hostfile {hostfile}: no such file")
    slots: dict[str, int] = {}
    for line in hostfile.read_text().splitlines():
        host, *words = line.split("#")[0].split() or [""]
        if not host:
            continue
        if host in slots:
            raise UsageError(f"--hostfile {hostfile} names {host} twice: give it one line with all its slots")
        told = re.search(r"slots=(\d+)", " ".join(words))
        slots[host] = int(told[1]) if told else 1
    if not slots:
        raise UsageError(f"--hostfile {hostfile} names no host; a line is: HOST slots=DEVICES")
    return slots
