"""Child side of a launch: how a process of a run exchanges files with the command that started it.

    .coma-launch-XXXX/
      config.json     configuration of the run
      heartbeat       touched every few seconds while the command is alive
      stop            request of the command to stop
      exit-00001      exit code of rank 1, which launchers in between do not pass on, and its error
      progress.jsonl  progress of rank 0, if the command made the file to ask for it
      result.json     result of rank 0

The command removes the folder at its end; if it was killed, its processes do.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from coma.errors import BUG_EXIT_CODE, fault_of

logger = logging.getLogger(__name__)

FOLDER_PREFIX = ".coma-launch-"
PARENT_VARIABLE = "COMA_LAUNCHED_BY"
CONFIG_NAME = "config.json"
HEARTBEAT_NAME = "heartbeat"
STOP_NAME = "stop"
RESULT_NAME = "result.json"
PROGRESS_NAME = "progress.jsonl"
GONE_AFTER_S = 60.0
"""Seconds without a heartbeat after which the command counts as gone: suspended, unreachable or killed."""
_CHECK_EVERY_S = 1.0


class ParentCommand:
    """The command that started this process, for the length of a `with` block.

    Args:
        config_file: the configuration file that the command wrote; if it is None or in no launch folder, there is no
            such command and nothing is exchanged.
        gone_after_s: seconds without a heartbeat after which the command counts as gone.
    """

    def __init__(self, config_file: Path | None, rank: int, gone_after_s: float = GONE_AFTER_S) -> None:
        self._folder: Path | None = None
        if config_file is not None and config_file.parent.name.startswith(FOLDER_PREFIX):
            self._folder = config_file.parent
        self._rank, self._gone_after_s = rank, gone_after_s
        self._parent = os.environ.get(PARENT_VARIABLE)
        self._beat: int | None = None
        self._beat_seen_s = self._checked_s = time.monotonic()
        self._warned = False
        self._is_gone()

    def wants_stop(self) -> bool:
        """Whether it asked this run to stop, or is gone; checks at most once per second."""
        now_s = time.monotonic()
        if self._folder is None or now_s - self._checked_s < min(_CHECK_EVERY_S, self._gone_after_s):
            return False
        self._checked_s = now_s
        if not self._is_gone():
            return (self._folder / STOP_NAME).exists()
        if not self._warned:
            self._warned = True
            logger.warning("the command that started this run is gone: saving a checkpoint and ending")
        return True

    def watcher(self) -> Callable[[Any], None] | None:
        """Return what passes on the progress of each step, a dataclass; None if the command does not ask for it."""
        if self._folder is None or not (self._folder / PROGRESS_NAME).exists():
            return None
        path = self._folder / PROGRESS_NAME

        def pass_on(progress: Any) -> None:
            with contextlib.suppress(OSError), path.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(progress)) + "\n")

        return pass_on

    def return_result(self, result: Mapping[str, Any]) -> None:
        """Write rank 0's result for the command to read."""
        if self._folder is not None:
            with contextlib.suppress(FileNotFoundError):  # the command is gone
                (self._folder / RESULT_NAME).write_text(json.dumps(result, default=str))

    def __enter__(self) -> ParentCommand:
        """Ask the kernel for a SIGTERM, which saves a checkpoint, if the command on this machine is killed."""
        if self._parent is not None and sys.platform.startswith("linux"):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
            if self._is_gone():  # since before the request
                self._remove_folder()
                raise SystemExit(1)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Write the exit code for the command, or remove the folder if the command cannot."""
        if self._is_gone():
            self._remove_folder()
        elif self._folder is not None:
            with contextlib.suppress(OSError):
                cause = fault_of(error) if isinstance(error, Exception) else None
                _exit_path(self._folder, self._rank).write_text(f"{exit_code(error)}\n{cause or ''}")

    def _remove_folder(self) -> None:
        assert self._folder is not None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _is_gone(self) -> bool:
        if self._folder is None:
            return False
        if self._parent is not None:
            return os.getppid() != int(self._parent)
        try:
            # On NFS an opened file is up to date; a bare stat may be a minute old.
            with (self._folder / HEARTBEAT_NAME).open("rb") as file:
                beat = os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return True
        except OSError:  # out of reach for now
            beat = self._beat or 0
        # Compared with the last beat only, as the clocks of two machines may differ.
        if beat != self._beat:
            self._beat, self._beat_seen_s = beat, time.monotonic()
        return time.monotonic() - self._beat_seen_s > self._gone_after_s


def exits(folder: Path, ranks: int) -> list[tuple[int, str]]:
    """Return the exit codes and errors that the first `ranks` ranks have written; a killed one writes none."""
    written = []
    for rank in range(ranks):  # by name, as the listing of a folder may be out of date on NFS
        with contextlib.suppress(OSError, ValueError):
            code, _, message = _exit_path(folder, rank).read_text().partition("\n")
            written.append((int(code), message))
    return written


def _exit_path(folder: Path, rank: int) -> Path:
    return folder / f"exit-{rank:05}"


def exit_code(error: BaseException | None) -> int:
    """Return the exit code with which `coma.cli` or Python ends after an error."""
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    fault = fault_of(error)
    return BUG_EXIT_CODE if fault is None else fault.exit_code
