"""What a process of a run tells the command that started it, and hears from it, by files in the launch folder.

    config.json     all that was asked for
    heartbeat       touched every few seconds, as long as the command lives
    stop            its request to stop
    exit-00001      the exit code of rank 1, which launchers in between do not hand on
    result.json     what rank 0 returned

The command removes the folder in the end; should it be gone itself, its processes do.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from coma.errors import ComaError

logger = logging.getLogger(__name__)

FOLDER_PREFIX = ".coma-launch-"
PARENT_VARIABLE = "COMA_LAUNCHED_BY"
CONFIG_NAME = "config.json"
HEARTBEAT_NAME = "heartbeat"
STOP_NAME = "stop"
RESULT_NAME = "result.json"
GONE_AFTER_S = 60.0
"""Without a heartbeat; the command is suspended, or its machine is out of reach, or it was killed."""
_LOOK_S = 1.0


class Launcher:
    """The command that started this process, for the length of a `with` block.

    Args:
        launched: the configuration file that the command wrote; if it lies in no launch folder, nobody listens.
        rank: of this process.
        gone_after_s: seconds without a heartbeat after which the command counts as gone.
    """

    def __init__(self, launched: Path | None, rank: int, gone_after_s: float = GONE_AFTER_S) -> None:
        """Look for the first time."""
        self._folder: Path | None = None
        if launched is not None and launched.parent.name.startswith(FOLDER_PREFIX):
            self._folder = launched.parent
        self._rank, self._gone_after_s = rank, gone_after_s
        self._parent = os.environ.get(PARENT_VARIABLE)
        self._beat: int | None = None
        self._beat_seen_s = self._looked_s = time.monotonic()
        self._said = False
        self._is_gone()

    def wants_stop(self) -> bool:
        """Whether it asked this run to stop, or is gone; looks once a second at most."""
        now_s = time.monotonic()
        if self._folder is None or now_s - self._looked_s < min(_LOOK_S, self._gone_after_s):
            return False
        self._looked_s = now_s
        if not self._is_gone():
            return (self._folder / STOP_NAME).exists()
        if not self._said:
            self._said = True
            logger.warning("the command that started this run is gone: saving, and leaving")
        return True

    def hand_back(self, result: Mapping[str, Any]) -> None:
        """Leave rank 0's result where the command looks for it."""
        if self._folder is not None:
            with contextlib.suppress(FileNotFoundError):  # nobody is left to look
                (self._folder / RESULT_NAME).write_text(json.dumps(result, default=str))

    def __enter__(self) -> Launcher:
        """Ask for a SIGTERM, which saves a checkpoint, should the command on this machine be killed."""
        if self._parent is not None and sys.platform.startswith("linux"):
            pr_set_pdeathsig = 1
            ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
            if self._is_gone():  # before we asked
                self._clear()
                raise SystemExit(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the exit code for the command, or remove what it can no longer remove."""
        if self._is_gone():
            self._clear()
        elif self._folder is not None:
            with contextlib.suppress(OSError):
                _exit_path(self._folder, self._rank).write_text(str(exit_code(error)))

    def _clear(self) -> None:
        assert self._folder is not None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _is_gone(self) -> bool:
        if self._folder is None:
            return False
        if self._parent is not None:
            return os.getppid() != int(self._parent)
        try:
            # What is opened is as the server has it; a bare stat may be a minute old on NFS.
            with (self._folder / HEARTBEAT_NAME).open("rb") as file:
                beat = os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return True
        except OSError:  # out of reach for now
            beat = self._beat or 0
        # Compared with itself only: the clocks of two machines may differ.
        if beat != self._beat:
            self._beat, self._beat_seen_s = beat, time.monotonic()
        return time.monotonic() - self._beat_seen_s > self._gone_after_s


def exit_codes(folder: Path, ranks: int) -> list[int]:
    """Return the exit codes that so many ranks have left; a killed one leaves none."""
    found = []
    for rank in range(ranks):  # by name: the list of a folder may be old on NFS
        with contextlib.suppress(OSError, ValueError):
            found.append(int(_exit_path(folder, rank).read_text()))
    return found


def _exit_path(folder: Path, rank: int) -> Path:
    return folder / f"exit-{rank:05}"


def exit_code(error: BaseException | None) -> int:
    """Return the exit code of a command that ends with an error, as `coma.cli` and Python have it."""
    if error is None:
        return 0
    if isinstance(error, ComaError):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
