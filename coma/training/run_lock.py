"""Lock of a run folder: rank 0 holds RUN/lock from before it writes anything until it ends: one writer at a time.

The kernel frees the lock when the process ends, however it ends. The file stays, and names its last holder.
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

from coma.errors import Preempted, UsageError
from coma.runs.names import LOCK_NAME
from coma.shards.locks import NO_LOCKS, file_lock
from coma.training.processes.child import GONE_AFTER_S
from coma.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

WAIT_S = GONE_AFTER_S + 60.0
"""How long to wait for another process: it may first have to notice that its parent is gone, and then saves."""
_POLL_S = 0.5


class RunLock(contextlib.ExitStack):
    """The right to write to a run folder, given back by `close` or at the end of a `with` block or of the process."""

    _made: tuple[Path, ...] = ()
    """Folders that were made for the lock, the innermost first."""

    def acquire(self, run: Path) -> bool:
        """Take the lock of a run folder, which is made if need be; False if another process has it.

        Raises:
            UsageError: the folder cannot be written to.
        """
        attempt = contextlib.ExitStack()
        made = tuple(folder for folder in (run, *run.parents) if not folder.exists())
        try:
            run.mkdir(parents=True, exist_ok=True)
            if attempt.enter_context(file_lock(run / LOCK_NAME)) is None:
                attempt.close()
                return False
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            if error.errno not in NO_LOCKS:
                raise UsageError(f"{run} cannot be written to ({reason}): give another --out") from None
            logger.warning("the file system of %s has no locks (%s): nothing keeps a second run out of it", run, reason)
        self.push(attempt)
        self._made = made
        (run / LOCK_NAME).write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        return True

    def abandon(self) -> None:
        """Give the lock back, and remove the folders that were made for it, if they hold nothing else."""
        if self._made:
            (self._made[0] / LOCK_NAME).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            for folder in self._made:
                folder.rmdir()
        self.close()


def take_run(
    choose: Callable[[], RunFolder],
    lock: RunLock,
    wait_s: float = WAIT_S,
    stop_asked: Callable[[], bool] = lambda: False,
) -> RunFolder:
    """Choose the run folder and take its lock; a finished run needs none.

    While another process holds the lock, wait for it: it is the same run, even without --out, and under the next name
    it would begin again from nothing, unnoticed.

    Args:
        choose: returns the folder as it is now (`choose_run`); repeated under the lock, as another process may have
            written to the folder before.
        wait_s: seconds to wait for another process.

    Raises:
        UsageError: another process holds the lock for longer than `wait_s`.
        Preempted: `stop_asked` was true while waiting.
    """
    deadline_s, awaited = time.monotonic() + wait_s, None
    while True:
        folder = choose()
        if awaited and folder.path != awaited.path:  # the run that was waited for has ended
            return replace(awaited, begun=True, finished=True)
        if folder.finished:
            return folder
        if lock.acquire(folder.path):
            if choose() == folder:
                return folder
            lock.close()
            continue
        if stop_asked():
            raise Preempted(f"asked to stop while {folder.path} was being written to by {holder(folder.path)}")
        if time.monotonic() >= deadline_s:
            raise UsageError(
                f"{folder.path} is being written to by {holder(folder.path)}: end it, or give another --out"
            )
        if awaited is None:
            text = "%s is being written to by %s: waiting for its end, %.0f s at most"
            logger.info(text, folder.path, holder(folder.path), wait_s)
            awaited = folder
        time.sleep(_POLL_S)


def holder(run: Path) -> str:
    """Return the last holder of the lock: `process 4711 on node3`."""
    try:
        content = json.loads((run / LOCK_NAME).read_text())
        return f"process {content['pid']} on {content['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
