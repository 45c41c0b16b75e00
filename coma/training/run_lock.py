"""One writer a run folder: rank 0 holds RUN/lock from before it writes anything until it ends, however it ends.

The kernel frees the lock with the process. The file stays, and says who held it last.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from coma.errors import Preempted, UsageError
from coma.shards.locks import NO_LOCKS, free_lock, take_lock
from coma.training.processes.child import GONE_AFTER_S
from coma.training.run_folder import LOCK_NAME, RunFolder

logger = logging.getLogger(__name__)

WAIT_S = GONE_AFTER_S + 60.0
"""For another process that holds the folder: it may have to notice that it was left alone, and then it saves."""
_POLL_S = 0.5


class RunLock:
    """The right to write to a run folder, given back at the end of a `with` block or of the process."""

    def __init__(self) -> None:
        """Nothing is held."""
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        """Hold nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back what is held."""
        self.release()

    def acquire(self, run: Path) -> bool:
        """Take the lock of a run folder, which is made if need be; False if another process has it.

        Raises:
            UsageError: the folder cannot be written to.
        """
        try:
            run.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(run / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise UsageError(f"{run} cannot be written to ({reason}): give another --out") from None
        try:
            if not take_lock(descriptor):
                os.close(descriptor)
                return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
            logger.warning(
                "the file system of %s has no locks (%s): nothing keeps a second run out of it",
                run,
                os.strerror(error.errno).lower(),
            )
        self._descriptor = descriptor
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
        return True

    def release(self) -> None:
        """Let another process have the folder."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # of a file system without locks
                free_lock(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


def take_run(
    choose: Callable[[], RunFolder],
    lock: RunLock,
    wait_s: float = WAIT_S,
    stop_asked: Callable[[], bool] = lambda: False,
) -> RunFolder:
    """Return the folder that `choose` finds, with its lock taken; a finished run needs none.

    Without --out, too, the same command waits for the folder of its predecessor and is refused in the end: it is
    the same run, and under the next name it would begin again from nothing, unnoticed.

    Raises:
        UsageError: another process holds it for longer than `wait_s`.
        Preempted: `stop_asked` was true while waiting.
    """
    deadline_s, waited_for = time.monotonic() + wait_s, None
    while True:
        found = choose()
        if waited_for and found.path != waited_for.path:  # which has come to its end
            return replace(waited_for, begun=True, finished=True)
        if found.finished:
            return found
        if lock.acquire(found.path):
            if choose() == found:  # nobody has come and gone in between
                return found
            lock.release()
            continue
        if stop_asked():
            raise Preempted(f"asked to stop while {found.path} was being written to by {holder(found.path)}")
        if time.monotonic() >= deadline_s:
            raise UsageError(
                f"{found.path} is being written to by {holder(found.path)}: end it, or give another --out"
            )
        if waited_for is None:
            logger.info(
                "%s is being written to by %s: waiting for its end, %.0f s at most",
                found.path,
                holder(found.path),
                wait_s,
            )
            waited_for = found
        time.sleep(_POLL_S)


def holder(run: Path) -> str:
    """Return who took the lock last: `process 4711 on node3`."""
    try:
        told = json.loads((run / LOCK_NAME).read_text())
        return f"process {told['pid']} on {told['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
