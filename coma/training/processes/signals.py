"""Requests to stop a run (signals, files), which are obeyed between two steps."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

_ONE_PRESS_S = 1.0
"""Seconds within which several SIGINTs count as one press of Ctrl-C."""


class StopRequests:
    """Remember SIGTERM and SIGUSR1 (preemption) and Ctrl-C, for the length of a `with` block.

    Ctrl-C interrupts at once while there is nothing to save, and the second time. In a thread that may not handle
    signals only files and `parent_asks` count.

    Args:
        parent_asks: whether the command that started this process wants it to stop.
    """

    def __init__(self, parent_asks: Callable[[], bool] = lambda: False) -> None:
        self._parent_asks = parent_asks
        self._began_s = time.time()
        self._files: Sequence[Path] = ()
        self._preempted = False
        self._can_save = False
        self._interrupted_s: float | None = None
        self._before: dict[int, object] = {}

    def forget(self, file: Path) -> None:
        """Delete a stop file that is older than this process: it was meant for an earlier one."""
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_mtime < self._began_s:
                file.unlink()

    def look_for(self, files: Sequence[Path]) -> None:
        """Count these files, if they exist, as requests to stop from now on; on rank 0."""
        self._files = files

    def steps_begin(self) -> None:
        """Let the first Ctrl-C from now on save a checkpoint first."""
        self._can_save = True

    @property
    def preempted(self) -> bool:
        """Whether a signal, a stop file or the parent command asks to stop."""
        return self._preempted or self._parent_asks() or any(path.exists() for path in self._files)

    @property
    def interrupted(self) -> bool:
        """Whether someone pressed Ctrl-C."""
        return self._interrupted_s is not None

    def __enter__(self) -> StopRequests:
        """Handle the signals."""
        try:
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                self._before[number] = signal.signal(number, self._notice)
        except ValueError:  # not the main thread
            pass
        return self

    def __exit__(self, *error: object) -> None:
        """Restore the former handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            self._preempted = True
            return
        if not self._can_save:
            raise KeyboardInterrupt
        now_s = time.monotonic()
        # A terminal and a launcher may both forward one press.
        if self._interrupted_s is not None and now_s - self._interrupted_s > _ONE_PRESS_S:
            raise KeyboardInterrupt
        self._interrupted_s = self._interrupted_s or now_s
