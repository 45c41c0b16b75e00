"""Runs side by side, a core each: small networks gain nothing from two threads, and lose much on a busy machine."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from typing import Any

import torch

from benchmarks.epochs.images import Data
from benchmarks.epochs.runs import Settings, train
from coma.errors import DivergedError

_data: Data  # of a worker process


def run_all(runs: Sequence[Settings], data: Data, load: Callable[[], Data], *, jobs: int) -> Iterator[dict[str, Any]]:
    """Yield the lines of the runs, as they end.

    Args:
        runs: what to run.
        data: for runs in this process, which is where they are if there is one job.
        load: gives the same data to each other process; something that can be pickled.
        jobs: runs at a time.

    Raises:
        DivergedError: a run's loss was not finite; the others have ended.
    """
    jobs = min(jobs, len(runs))
    if jobs <= 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from _lines(partial(train, run, data, say) for run in runs)
        finally:
            torch.set_num_threads(threads)
        return
    spawn = multiprocessing.get_context("spawn")  # torch does not survive a fork
    with ProcessPoolExecutor(jobs, spawn, _start, (load,)) as pool:
        futures = [pool.submit(_train, run) for run in runs]
        try:
            yield from _lines(future.result for future in as_completed(futures))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _lines(outcomes: Iterable[Callable[[], dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Give the lines of all the runs that end well before one that diverged is an error."""
    diverged: DivergedError | None = None
    for outcome in outcomes:
        try:
            line = outcome()
        except DivergedError as error:
            say(str(error))
            diverged = diverged or error
        else:
            yield line
    if diverged is not None:
        raise diverged


def say(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def _start(load: Callable[[], Data]) -> None:
    global _data
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    torch.set_num_threads(1)
    _data = load()


def _end_with_the_command() -> None:
    """End this process when the command is killed: its runs would go on for hours, for nobody."""
    command = multiprocessing.parent_process()
    assert command is not None
    command.join()
    os._exit(1)


def _train(settings: Settings) -> dict[str, Any]:
    return train(settings, _data, say)
