"""A request to stop, noticed between two steps: never in the middle of one."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType

_ONE_PRESS_S = 1.0


class StopRequests:
    """Remember SIGTERM and SIGUSR1 (pre-emption) and Ctrl-C, for the length of a `with` block.

    Ctrl-C interrupts at once as long as there is nothing to save, and the second time. In a thread that may not
    handle signals only files are noticed, and what `asked` says.
    """

    def __init__(self, asked: Callable[[], bool] = lambda: False) -> None:
        """Nothing has been asked for."""
        self._asked = asked
        self._began_s = time.time()
        self._files: Sequence[Path] = ()
        self._preempted = False
        self._can_save = False
        self._interrupted_s: float | None = None
        self._before: dict[int, object] = {}

    def forget(self, file: Path) -> None:
        """Delete a file that asks to stop, if it is older than this: it was meant for an earlier session."""
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_mtime < self._began_s:
                file.unlink()

    def look_for(self, files: Sequence[Path]) -> None:
        """Look for files too, from now on; rank 0 does."""
        self._files = files

    def steps_begin(self) -> None:
        """Take the first Ctrl-C, from now on, as a wish to save."""
        self._can_save = True

    @property
    def preempted(self) -> bool:
        """Whether the machine is wanted back, or someone has put a file there."""
        return self._preempted or self._asked() or any(path.exists() for path in self._files)

    @property
    def interrupted(self) -> bool:
        """Whether someone pressed Ctrl-C."""
        return self._interrupted_s is not None

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
        if number != signal.SIGINT:
            self._preempted = True
            return
        if not self._can_save:
            raise KeyboardInterrupt
        now_s = time.monotonic()
        # A terminal and a launcher may both pass one press on.
        if self._interrupted_s is not None and now_s - self._interrupted_s > _ONE_PRESS_S:
            raise KeyboardInterrupt
        self._interrupted_s = self._interrupted_s or now_s
