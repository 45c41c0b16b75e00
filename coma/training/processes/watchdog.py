"""Watchdog: ends a run that makes no progress, and names the process that held it up.

    RUN/ranks/rank-00001.json   where a process is: host, pid, step, phase, since when
    RUN/ranks/rank-00001.txt    the stacks of its threads, once it was found stuck

A process that waits for another is as stuck as that one. To tell them apart, each process writes how far it has come,
and those that are furthest behind are named. The folder is removed when a run ends well.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from coma.errors import ComaError
from coma.runs.names import RANKS_NAME, rank_name, rank_of
from coma.shards.files import write_atomically
from coma.training.logs.metrics import duration
from coma.training.processes.world import World

logger = logging.getLogger(__name__)

PHASES = ("starting", "data", "forward and backward", "summing up", "evaluating", "saving")
"""Phases of a step in their order; `starting` is before the first step."""
_LONGEST_BEAT_S = 10.0
_BEATS_PER_LIMIT = 10


@dataclass(frozen=True)
class Pulse:
    """How far a process has come."""

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    since_s: float
    """Unix time at which the phase began."""

    @property
    def reached(self) -> tuple[int, int]:
        """Step and phase, to be compared with those of others."""
        return self.step, PHASES.index(self.phase)


class Watchdog:
    """Watches this process from a thread, for the length of a `with` block.

    Args:
        run: the run folder, which all processes share.
        limit_s: seconds in one phase after which the process ends with exit code 1; 0: never.
    """

    def __init__(self, run: Path, world: World, limit_s: float) -> None:
        self._folder, self._rank, self._size, self._limit_s = (run / RANKS_NAME, world.rank, world.size, limit_s)
        self._beat_s = min(_LONGEST_BEAT_S, limit_s / _BEATS_PER_LIMIT)
        self._over = threading.Event()
        self._written: Pulse | None = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.enter("starting", 0)

    def enter(self, phase: str, step: int) -> None:
        """Record what this process does from now on."""
        self._now = Pulse(self._rank, socket.gethostname(), os.getpid(), step, phase, time.time())

    def __enter__(self) -> Watchdog:
        """Start the thread."""
        if self._limit_s:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._stacks = self._file("txt").open("w")
            self._write(self._now)
            if self._rank == 0:
                self._remove_others()
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the thread and remove the files of this process."""
        if not self._limit_s:
            return
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._stacks.close()
        for suffix in ("txt", "json"):
            self._file(suffix).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others are still in it
            self._folder.rmdir()

    def _watch(self) -> None:
        while not self._over.wait(self._beat_s):
            # Where memory is out, a thread cannot be started nor a file written: training reports that itself.
            with contextlib.suppress(MemoryError, RuntimeError):
                self._beat()

    def _beat(self) -> None:
        # If another thread keeps the interpreter's lock, faulthandler, which does not need it, ends the process.
        faulthandler.dump_traceback_later(2 * self._limit_s, exit=True, file=self._stacks)
        now = self._now
        if now != self._written:
            self._write(now)
            self._written = now
        if time.time() - now.since_s > self._limit_s:
            self._give_up(now)

    def _write(self, now: Pulse) -> None:
        with contextlib.suppress(OSError):  # a full disk is for training to report
            write_atomically(self._file("json"), json.dumps(asdict(now)))

    def _remove_others(self) -> None:
        """Remove files of ranks that an earlier, killed run had and this one does not."""
        for path in self._folder.iterdir():
            if (rank_of(path.name) or 0) >= self._size:
                path.unlink(missing_ok=True)

    def _give_up(self, now: Pulse) -> None:
        faulthandler.dump_traceback(file=self._stacks)
        if self._over.wait(2 * self._beat_s) or self._now is not now:  # until the others have written
            return
        pulses = self._pulses(now)
        last = laggards(pulses)
        if now not in last and self._over.wait(2 * self._beat_s):  # those behind report it themselves, if they can
            return
        speaker = last[0] if now in last else next(pulse for pulse in pulses if pulse not in last)
        if speaker == now:
            error = ComaError(stuck_message(last, self._size, self._folder, self._limit_s))
            logger.error("error: %s", error)
            for handler in logging.getLogger("coma").handlers:
                handler.flush()
        os._exit(ComaError.exit_code)

    def _pulses(self, own: Pulse) -> list[Pulse]:
        pulses = {own.rank: own}
        for rank in range(self._size):
            path = self._folder / rank_name(rank, "json")
            with contextlib.suppress(OSError, ValueError, TypeError):
                pulses.setdefault(rank, Pulse(**json.loads(path.read_text())))
        return [pulses[rank] for rank in sorted(pulses)]

    def _file(self, suffix: str) -> Path:
        return self._folder / rank_name(self._rank, suffix)


def laggards(pulses: Sequence[Pulse]) -> list[Pulse]:
    """Return those that are furthest behind: all of them if all wait in one phase."""
    least = min(pulse.reached for pulse in pulses)
    return [pulse for pulse in pulses if pulse.reached == least]


def stuck_message(last: Sequence[Pulse], size: int, folder: Path, limit_s: float) -> str:
    """Return the error message that names them."""
    first = last[0]
    who = ", ".join(f"rank {pulse.rank} on {pulse.host}" for pulse in last[:4])
    who += f" and {len(last) - 4} more" if len(last) > 4 else ""
    if len(last) == size > 1:
        who = f"all of {size} ranks ({who})"
    where = first.phase if first.phase == PHASES[0] else f"{first.phase} of step {first.step}"
    return (
        f"stuck: {who} for {duration(time.time() - first.since_s)} in {where} (--stuck-after {limit_s:g}); "
        f"stacks in {folder}; the same command resumes from the last checkpoint"
    )
