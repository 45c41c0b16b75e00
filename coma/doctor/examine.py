"""Runner of the checks, each in a process of its own: one that crashes or hangs becomes a finding like the others."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection

from coma.doctor.finding import Finding

LIMIT_S = 120.0
"""Time that a check has before it counts as hanging."""
_REINSTALL = "install coma-vision in a new environment (docs/install.md)"

Check = Callable[[], Finding]


def checks(url: str | None = None) -> dict[str, Check]:
    """Return all checks by name, in the order in which they are shown; `url`: a store to reach as well."""
    from coma.doctor import machine, software

    named: dict[str, Check] = {
        "package": software.installed_files,
        "versions": software.versions,
        "CUDA": software.cuda,
        "GPU": software.gpus,
        "NCCL": software.nccl,
        "gloo": software.gloo,
        "compiler": software.compiler,
        "DeepSpeed": software.deepspeed_ops,
        "decoding": software.decoding,
        "cores": machine.cores,
        "memory": machine.memory,
        "/dev/shm": machine.shared_memory,
        "open files": machine.open_files,
        "disk": machine.disk,
    }
    if url is not None:
        named["network"] = partial(software.network, url)
    return named


def examine(checks: Mapping[str, Check], limit_s: float = LIMIT_S) -> Iterator[tuple[str, Finding]]:
    """Run the checks, as many at a time as there are cores, and yield (name, finding) in their order."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from zip(checks, pool.map(partial(_run_apart, limit_s=limit_s), checks.values()), strict=True)


def _run_apart(check: Check, limit_s: float) -> Finding:
    """Run a check in a new process and return its finding, or one that says that it crashed or hangs."""
    processes = multiprocessing.get_context("spawn")
    answer, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=_answer, args=(check, theirs))
    process.start()
    theirs.close()
    try:
        if not answer.poll(limit_s):
            return Finding("problem", f"no answer within {limit_s:g} s", "something here hangs: try again, then reboot")
        finding: Finding = answer.recv()
        return finding
    except EOFError:
        process.join()
        return Finding("problem", f"the check crashed (exit code {process.exitcode})", _REINSTALL)
    finally:
        process.kill()
        process.join()
        answer.close()


def _answer(check: Check, answer: Connection) -> None:
    """Run a check and send its finding; the process ends here."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries print
        os.dup2(nowhere, stream)
    try:
        finding = check()
    except Exception as error:
        message = " ".join(str(error).split())[:200]
        finding = Finding("problem", f"{type(error).__name__}: {message}", _REINSTALL)
    answer.send(finding)
    os._exit(0)  # threads of libraries may not end
