"""Timing of several loaders that do the same work, turn by turn, on one core."""

import os
import statistics
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

from coma.errors import ComaError, DataError

Loading = Generator[int, None, None]
"""A loader at work: yields the number of images of each batch that it has just loaded, without end."""

_IDLE_S = 0.01  # threads that work ahead have done so when this long passes without work
_SETTLE_S = 10.0


@dataclass(frozen=True)
class Timing:
    """Seconds an image of one loader, in each round."""

    cpu_s: tuple[float, ...]
    wall_s: tuple[float, ...]

    @property
    def images_per_cpu_s(self) -> float:
        """Median over the rounds of images per second of CPU time."""
        return 1 / max(statistics.median(self.cpu_s), 1e-9)

    @property
    def images_per_s(self) -> float:
        """Median over the rounds of images per second of wall time, on one core."""
        return 1 / max(statistics.median(self.wall_s), 1e-9)

    def ratio_to(self, other: "Timing") -> float:
        """Images a CPU-second as a multiple of another loader's: the median of the rounds' ratios."""
        return statistics.median(b / max(a, 1e-9) for a, b in zip(self.cpu_s, other.cpu_s, strict=True))


def take_turns(
    loaders: Mapping[str, Callable[[], Loading]],
    images: int,
    rounds: int,
    progress: Callable[[str, int, int], None],
    *,
    needed: Collection[str],
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time each loader over `images` images in each of the rounds: (timings, reasons of those that failed), by name.

    Raises:
        DataError: one of those `needed` fails.
        ComaError: the data are refused by coma itself.
    """
    cpu: dict[str, list[float]] = {name: [] for name in loaders}
    wall: dict[str, list[float]] = {name: [] for name in loaders}
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        running = {name: stack.enter_context(closing(start())) for name, start in loaders.items()}
        for number in range(-1, rounds):
            for name, loading in running.items():
                if name in failed:
                    continue
                progress(name, max(0, number), rounds)
                try:
                    if number < 0:
                        next(loading)  # builds it
                        continue
                    cpu_s, wall_s, done = _turn(loading, images)
                except ComaError:
                    raise
                except Exception as error:  # anything may be wrong with other people's libraries
                    if name in needed:
                        raise DataError(f"{name} fails on this sample: {_reason(error)}") from error
                    failed[name] = _reason(error)
                else:
                    cpu[name].append(cpu_s / done)
                    wall[name].append(wall_s / done)
    return {name: Timing(tuple(cpu[name]), tuple(wall[name])) for name in loaders if name not in failed}, failed


def _reason(error: Exception) -> str:
    """Return an error in one line, without lines that only announce the next one."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line.rstrip(",") for line in lines if line and not line.endswith(":")]
    return ": ".join([type(error).__name__, *said[:1]])


def _turn(loading: Loading, images: int) -> tuple[float, float, int]:
    """Return CPU seconds, wall seconds and the number of images of one turn of at least `images`.

    It lasts from rest to rest, so that as much is prepared ahead before it as after it.
    """
    _settle()
    cpu_s, wall_s, done = time.process_time(), time.perf_counter(), 0
    while done < images:
        done += next(loading)
    rest_cpu_s, rest_wall_s = _settle()
    return rest_cpu_s - cpu_s, rest_wall_s - wall_s, done


def _settle() -> tuple[float, float]:
    """Wait until no thread works any more; return the CPU and wall clock of when that began."""
    until = time.perf_counter() + _SETTLE_S
    while True:
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        time.sleep(_IDLE_S)
        if time.process_time() - cpu_s < _IDLE_S / 20 or time.perf_counter() > until:
            return cpu_s, wall_s


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process, and the threads it starts meanwhile, on one core."""
    import torch

    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {max(cores)})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
