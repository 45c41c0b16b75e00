"""`coma pretrain` in processes of its own: starting it, looking at what it started, killing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

SMALL = ["--model", "dyvit_nano", "--image-size", "32", "--patch-size", "2", "--batch-size", "4", "--workers", "1"]


def environment() -> dict[str, str]:
    """Ours, one thread a process, and with bytecode kept: else compiling it is most of a start."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "OMP_NUM_THREADS": "1"}


def command(data: Path, run: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "coma", "pretrain", str(data), "--out", str(run), *SMALL, *options]


def begin(arguments: Sequence[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, its stderr and stdout appended to `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            arguments, stdout=file, stderr=file, env={**environment(), **variables}, start_new_session=True
        )


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return children + [grandchild for child in children for grandchild in descendants(child)]


def ranks(launcher: subprocess.Popen[bytes], devices: int) -> list[int]:
    """The processes that train, in order; fewer while they are being started."""
    if devices == 1:
        return [launcher.pid]
    environments = {pid: _environment(pid) for pid in descendants(launcher.pid)}
    found = {int(known["RANK"]): pid for pid, known in environments.items() if "COMA_LAUNCHED_BY" in known}
    return [found[rank] for rank in sorted(found)]


def _environment(pid: int) -> dict[str, str]:
    try:
        pairs = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def wait_until(holds: Callable[[], bool], limit_s: float, process: subprocess.Popen[bytes] | None = None) -> bool:
    """Wait for something; False if the process ended before. Fail after `limit_s`."""
    deadline_s = time.monotonic() + limit_s
    while not holds():
        if process is not None and process.poll() is not None:
            return holds()
        assert time.monotonic() < deadline_s, f"nothing in {limit_s:g} s"
        time.sleep(0.002)
    return True


def all_gone(pids: Sequence[int], limit_s: float = 60.0) -> None:
    """Wait until none of the processes is left; fail, and kill them, after `limit_s`."""
    try:
        wait_until(lambda: not any(map(alive, pids)), limit_s)
    finally:
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)
