"""Each part in a process of its own, so that a crash, a hang or a full memory of one does not end the others.

python -m benchmarks.gpu.process PART SETTING SCRATCH    # what `run_part` starts
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import Part, chosen
from benchmarks.gpu.record import Setting, read_record, setting_from, write_record

ROOT = Path(__file__).parents[2]
_LOOK_S = 0.2


def environment(setting: Setting) -> dict[str, str]:
    """Return a part's variables: it finds this checkout first, and no GPU where it rehearses."""
    # What a test runner told this process is not for the one that a part starts, and without bytecode on disk each
    # of the many commands that parts run would compile what it imports.
    dropped = ("PYTEST", "PYTHONDONTWRITEBYTECODE")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    path = os.pathsep.join([str(ROOT), *filter(None, [ours.get("PYTHONPATH")])])
    hidden = {} if setting.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    # threads on cores that others use spin for longer than such small steps take
    single = {"OMP_NUM_THREADS": ours.get("OMP_NUM_THREADS", "1")} if setting.quick else {}
    return {**ours, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **hidden, **single}


def run_part(part: Part, setting: Setting) -> dict[str, Any]:
    """Measure a part, and return its record, in which the reason stands if it did not end by itself.

    What the process prints goes to OUT/PART.log. After the budget it is killed with all that it has started.
    """
    out = Path(setting.out)
    with (
        tempfile.TemporaryDirectory(prefix=f"coma-gpu-{part.name}-", ignore_cleanup_errors=True) as scratch,
        (out / f"{part.name}.log").open("ab") as log,
    ):
        command = [sys.executable, "-m", "benchmarks.gpu.process", part.name, setting.to_text(), scratch]
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment(setting),
            cwd=scratch,
            start_new_session=True,  # a group that can be killed when its leader is gone
        )
        try:
            reason = _wait(process, setting.budget_s)
        finally:
            _kill(process.pid)
            process.wait()
    record = read_record(out, part.name) or {"part": part.name, **setting.identity(), "rows": [], "notes": []}
    state = record.get("state")
    if reason is None and state in ("complete", "partial", "skipped"):
        return record
    if state in ("complete", "skipped"):  # libraries may hang or crash while they are taken down
        record["notes"].append(f"after all was measured: {reason}")
        write_record(out, part.name, record)
        return record
    reason = reason or "it left no result"
    record |= {"state": "failed", "reason": f"{reason}{_last_words(out / f'{part.name}.log')}"}
    write_record(out, part.name, record)
    return record


def _wait(process: "subprocess.Popen[bytes]", limit_s: float) -> str | None:
    """Wait for a process; return what went wrong, None for nothing."""
    deadline_s = time.monotonic() + limit_s
    while process.poll() is None:
        if time.monotonic() > deadline_s:
            return f"killed, as it was not done after {limit_s:g} s"
        time.sleep(_LOOK_S)
    if process.returncode < 0:
        return f"ended by {signal.Signals(-process.returncode).name}"
    return f"exit code {process.returncode}" if process.returncode else None


def _last_words(log: Path) -> str:
    """Return the last line of a log, which is where an error says what it is."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f": {lines[-1][:300]}" if lines else ""


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


def _kill(leader: int) -> None:
    """Kill a process, what it has started, and what is left of its group."""
    for pid in descendants(leader):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def main(name: str, text: str, scratch: str) -> None:
    """Measure a part in this process."""
    setting = setting_from(text)
    (part,) = chosen([name])
    from benchmarks.gpu.machine import describe
    from benchmarks.gpu.part import Measuring

    measuring = Measuring(part.name, setting, Path(scratch), describe(setting.device))
    part.measure()(measuring)
    measuring.end()


if __name__ == "__main__":
    main(*sys.argv[1:])
