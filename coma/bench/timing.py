"""Take the time of several ways to do the same work, turn by turn, on one core."""

import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coma.errors import ComaError, DataError

if TYPE_CHECKING:
    from coma.bench.ways import Way

_IDLE_S = 0.01  # threads that work ahead have done so when this long passes without work
_SETTLE_S = 10.0


@dataclass(frozen=True)
class Timing:
    """One way's rounds, in seconds an image."""

    cpu_s: tuple[float, ...]
    wall_s: tuple[float, ...]

    @property
    def images_per_cpu_s(self) -> float:
        """Median."""
        return 1 / max(statistics.median(self.cpu_s), 1e-9)

    @property
    def images_per_s(self) -> float:
        """Median, on one core."""
        return 1 / max(statistics.median(self.wall_s), 1e-9)

    def ratio_to(self, other: "Timing") -> float:
        """How many times as many images a CPU-second as another way: the median of the rounds' ratios."""
        return statistics.median(b / max(a, 1e-9) for a, b in zip(self.cpu_s, other.cpu_s, strict=True))


def take_turns(
    made: Mapping[str, "Callable[[], Way]"],
    images: int,
    rounds: int,
    progress: Callable[[str, int, int], None],
    *,
    needed: Collection[str],
) -> tuple[dict[str, Timing], dict[str, str]]:
    """What each way takes for as many images, in each round; and why those that failed did.

    Raises:
        DataError: if one of those needed fails. What coma itself says of the data (ComaError) is raised too.
    """
    cpu: dict[str, list[float]] = {name: [] for name in made}
    wall: dict[str, list[float]] = {name: [] for name in made}
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        ways = {name: stack.enter_context(closing(make())) for name, make in made.items()}
        for number in range(-1, rounds):
            for name, way in ways.items():
                if name in failed:
                    continue
                progress(name, max(0, number), rounds)
                try:
                    if number < 0:
                        next(way)  # builds it
                        continue
                    cpu_s, wall_s, done = _turn(way, images)
                except ComaError:
                    raise
                except Exception as error:  # anything may be wrong with other people's libraries
                    if name in needed:
                        raise DataError(f"{name} fails on this sample: {_reason(error)}") from error
                    failed[name] = _reason(error)
                else:
                    cpu[name].append(cpu_s / done)
                    wall[name].append(wall_s / done)
    return {name: Timing(tuple(cpu[name]), tuple(wall[name])) for name in made if name not in failed}, failed


def _reason(error: Exception) -> str:
    """In one line; those that only announce the next one are left out."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line.rstrip(",") for line in lines if line and not line.endswith(":")]
    return ": ".join([type(error).__name__, *said[:1]])


def _turn(way: "Way", images: int) -> tuple[float, float, int]:
    """CPU and wall seconds of as many images, from rest to rest: what was prepared ahead before is as much as
    what is after."""
    _settle()
    cpu_s, wall_s, done = time.process_time(), time.perf_counter(), 0
    while done < images:
        done += next(way)
    rest_cpu_s, rest_wall_s = _settle()
    return rest_cpu_s - cpu_s, rest_wall_s - wall_s, done


def _settle() -> tuple[float, float]:
    """Wait until no thread works any more; CPU and wall clock when that began."""
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
