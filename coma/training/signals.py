"""A request to stop, noticed between two steps: never in the middle of one."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType, TracebackType


class StopRequests:
    """Remember SIGTERM and SIGUSR1 (pre-emption) and Ctrl-C, for the length of a `with` block.

    A second Ctrl-C interrupts at once. In a thread that may not handle signals nothing is ever noticed.
    """

    def __init__(self, stop_file: Path | None = None) -> None:
        """Watch for a file too, if given."""
        self._stop_file = stop_file
        self._preempted = False
        self._interrupted = False
        self._before: dict[int, object] = {}

    @property
    def preempted(self) -> bool:
        """Whether the machine is wanted back; the launcher of several machines says so by a file."""
        return self._preempted or (self._stop_file is not None and self._stop_file.exists())

    @property
    def interrupted(self) -> bool:
        """Whether someone pressed Ctrl-C."""
        return self._interrupted

    def __enter__(self) -> StopRequests:
        """Take over the signals."""
        try:
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                self._before[number] = signal.signal(number, self._notice)
        except ValueError:
            pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        else:
            self._preempted = True
