"""Launch of a run: several processes on this machine, or DeepSpeed's launcher for several machines.

Each process is the same command with a file of its whole configuration, such as `coma pretrain --launched FILE`: the
remote shells of launchers expand arguments and drop the environment.
"""

from __future__ import annotations

import contextlib
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
from typing import TYPE_CHECKING, Any

from coma.errors import ComaError, LaunchFailed, Preempted, UsageError
from coma.training.config.options import RunConfig
from coma.training.processes.child import (
    CONFIG_NAME,
    FOLDER_PREFIX,
    HEARTBEAT_NAME,
    PARENT_VARIABLE,
    PROGRESS_NAME,
    RESULT_NAME,
    STOP_NAME,
    exits,
)
from coma.training.processes.world import Place, free_port

if TYPE_CHECKING:
    from coma.training.logs.metrics import Watcher

logger = logging.getLogger(__name__)

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_GRACE_S = 5.0
_CONNECT_S = 20
_POLL_S = 0.05
_BEAT_S = 5.0


def start_here(config: RunConfig, devices: int, progress: Watcher | None = None) -> dict[str, Any]:
    """Run `config` on `devices` processes of this machine and return what rank 0 returned; `progress` hears of it.

    Signals are forwarded, the first failure ends all processes, and none outlives this one.

    Raises:
        LaunchFailed: with the exit code of the process that failed, which has reported why.
    """
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as name:
        folder = Path(name)
        command = _command(config, folder)
        listen = _listener(folder, progress)
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
                start_new_session=True,  # Ctrl-C reaches this process only, which forwards it once
            )
            for rank in range(devices)
        ]

        def forward(number: int) -> None:
            for process in processes:
                if process.poll() is None:
                    process.send_signal(number)

        try:
            with _on_signals(forward):
                exit_code = _wait_for_all(processes, listen=listen)
        finally:
            _kill(processes)
        return _result(folder, exit_code, devices)


def start_on_hosts(config: RunConfig, progress: Watcher | None = None) -> dict[str, Any]:
    """Run `config` by DeepSpeed's launcher on the machines of its hostfile, which must share this folder.

    If this process is killed, the others miss its heartbeat, save a checkpoint and end.

    Raises:
        UsageError: there is no such hostfile, it names a host twice, or one that ssh does not reach.
        LaunchFailed: with the exit code of the process that failed, 1 if it was killed.
    """
    assert config.hostfile is not None
    slots = read_hostfile(config.hostfile)
    _check_reachable(config.hostfile, list(slots))
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, dir=Path.cwd()) as name:
        folder = Path(name)
        heartbeat = folder / HEARTBEAT_NAME
        heartbeat.touch()
        listen = _listener(folder, progress)
        launcher = ["deepspeed.launcher.runner", "--hostfile", str(config.hostfile.absolute())]
        launcher += ["--master_port", str(free_port()), "--no_local_rank", "--module"]
        process = subprocess.Popen(
            [sys.executable, "-m", *launcher, *_command(config, folder)],
            stdout=sys.stderr,  # its log; the result is returned by a file
            start_new_session=True,
        )
        try:
            # A signal would end the launcher and leave the ranks running: they look for this file instead.
            signals: list[int] = []

            def stop(number: int) -> None:
                signals.append(number)
                (folder / STOP_NAME).touch()

            with _on_signals(stop):
                launcher_failed = _wait_for_all([process], heartbeat.touch, listen)
        finally:
            _kill([process])
        # The launcher's own exit code is that of a process that it killed.
        ranks = sum(slots.values())
        exit_code = _first_cause([code for code, _ in exits(folder, ranks)]) or int(launcher_failed > 0)
        if exit_code == Preempted.exit_code and signal.SIGINT in signals:
            raise KeyboardInterrupt
        return _result(folder, exit_code, ranks)


def _check_reachable(hostfile: Path, hosts: Sequence[str]) -> None:
    """Check that ssh reaches every host: DeepSpeed checks the first only, and the rest would wait for minutes."""
    for tool in ["ssh", "pdsh"][: len(hosts)]:
        if shutil.which(tool) is None:
            raise UsageError(f"--hostfile {hostfile} needs {tool}: install it, or use torchrun on each machine")
    ssh = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S}"]
    checks = {
        host: subprocess.Popen(
            [*ssh, host, "true"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for host in hosts
    }
    answers = {host: (process.communicate()[1], process.returncode) for host, process in checks.items()}
    for host, (stderr, code) in answers.items():
        if code:
            reason = " ".join(stderr.decode(errors="replace").split()) or f"exit code {code}"
            raise UsageError(
                f"--hostfile {hostfile}: cannot run commands on {host} ({reason}): "
                f"`ssh {host} true` must work without a password"
            )


def _command(config: RunConfig, folder: Path) -> list[str]:
    path = folder / CONFIG_NAME
    config.save(path)
    level = logging.getLogger("coma").getEffectiveLevel()
    verbosity = ["-v"] if level <= logging.DEBUG else ["-q"] if level > logging.INFO else []
    return ["coma", *verbosity, config.command, "--launched", str(path)]


def _listener(folder: Path, progress: Watcher | None) -> Callable[[], None]:
    """Ask the run for its progress, and return what hands on as much as has arrived."""
    if progress is None:
        return lambda: None
    from coma.training.logs.metrics import Progress

    path = folder / PROGRESS_NAME
    path.touch()
    read = 0

    def listen() -> None:
        nonlocal read
        with path.open("rb") as file:
            file.seek(read)
            for line in iter(file.readline, b""):
                if not line.endswith(b"\n"):
                    break
                read += len(line)
                progress(Progress(**json.loads(line)))

    return listen


def _result(folder: Path, exit_code: int, ranks: int) -> dict[str, Any]:
    if exit_code:
        said = (message for code, message in exits(folder, ranks) if code == exit_code and message)
        raise LaunchFailed(exit_code, next(said, None))
    try:
        result: dict[str, Any] = json.loads((folder / RESULT_NAME).read_text())
    except FileNotFoundError:  # pdsh was killed, which DeepSpeed's launcher does not count as a failure
        raise ComaError(
            "the run ended without a result: its connection to other machines was killed; the same command resumes "
            "from the last checkpoint"
        ) from None
    return result


def _wait_for_all(
    processes: Sequence[subprocess.Popen[bytes]],
    beat: Callable[[], None] = lambda: None,
    listen: Callable[[], None] = lambda: None,
) -> int:
    """Wait until all have ended, and return the exit code of the first cause.

    Meanwhile `beat` is called every few seconds and `listen` many times a second, once more at the end.

    After one has failed, the others get `_GRACE_S` seconds to end.
    """
    deadline, next_beat = float("inf"), 0.0
    while (now := time.monotonic()) < deadline:
        if now >= next_beat:
            next_beat = now + _BEAT_S
            with contextlib.suppress(OSError):
                beat()
        codes = [process.poll() for process in processes]
        listen()
        if None not in codes:
            break
        if any(codes) and deadline == float("inf"):
            deadline = now + _GRACE_S
        time.sleep(_POLL_S)
    return _first_cause([code if code > 0 else 128 - code for process in processes if (code := process.poll())])


def _first_cause(codes: Sequence[int]) -> int:
    """Return the exit code that tells why the run ended: a process that only lost its peers has 1, a killed one more
    than 128.
    """
    return min(filter(None, codes), key=lambda code: code == 1 or code > 128, default=0)


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def _on_signals(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` with each of the forwarded signals in place of its handler."""

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
    """Return the number of processes on each host of a DeepSpeed hostfile.

    Raises:
        UsageError: there is no such file, or it names no host, or one twice.
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
        match = re.search(r"slots=(\d+)", " ".join(words))
        slots[host] = int(match[1]) if match else 1
    if not slots:
        raise UsageError(f"--hostfile {hostfile} names no host; a line is: HOST slots=DEVICES")
    return slots
