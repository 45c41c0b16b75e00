"""`coma bench loader`: the stream beside what else reads images, on a sample of the user's own.

A sample of the images is copied into a temporary folder, as files and as shards, so that every way does the
very same work out of the page cache; how fast the user's own storage gives them is measured as they are
copied. The ways take turns, round after round, on one core; a ratio is the median of the rounds' ratios, so
that what else the machine does strikes all alike. CPU time is user and system time of all threads.
"""

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coma.errors import DataError, UsageError
from coma.shards.manifest import Manifest, read_manifest
from coma.shards.options import ShardOptions
from coma.shards.writer import shard

if TYPE_CHECKING:
    from coma.bench.ways import Sample, Way

PEER = "ImageFolder + PIL"
STREAM = "coma"
NATIVE = "DALI, its own reader"
_IDLE_S = 0.01  # threads that work ahead have done so when this long passes without work
_SETTLE_S = 10.0
_SMALL_PX = 256  # what `coma shard --resize` is advised to make of large images


@dataclass(frozen=True)
class BenchOptions:
    """What to measure. Raises UsageError."""

    images: int = 256
    """Of the sample; a whole number of batches is taken."""
    rounds: int = 5
    image_size: int = 224
    """Pixels."""
    batch_size: int = 32

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for name in ("images", "rounds", "image_size", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 1 or more")


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


@dataclass(frozen=True)
class LoaderBench:
    """What was measured."""

    data: Path
    images: int
    image_bytes: float
    """Mean."""
    megapixels: float
    """Mean."""
    shorter_side: float
    """Median, pixels."""
    storage_images_per_s: float
    """Of the user's own shards, as cached as they are now; one reader."""
    options: BenchOptions
    ways: dict[str, Timing]
    limits: dict[str, Timing]
    """Decoding alone."""
    stages_us: dict[str, float]
    """CPU microseconds an image that each stage of the stream takes; they add up to the stream."""

    @property
    def bottleneck(self) -> str:
        """The stage that takes longest, or "storage" if that cannot keep up with one core."""
        if self.storage_images_per_s < self.ways[STREAM].images_per_s:
            return "storage"
        return max(self.stages_us, key=self.stages_us.__getitem__)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        peer = self.ways[PEER]

        def plain(timing: Timing) -> dict[str, float]:
            return {
                "images_per_cpu_s": round(timing.images_per_cpu_s, 1),
                "images_per_s": round(timing.images_per_s, 1),
                "ratio": round(timing.ratio_to(peer), 3),
            }

        return {
            "data": str(self.data),
            "images": self.images,
            "rounds": self.options.rounds,
            "image_size": self.options.image_size,
            "batch_size": self.options.batch_size,
            "image_bytes": round(self.image_bytes),
            "megapixels": round(self.megapixels, 3),
            "shorter_side": self.shorter_side,
            "storage_images_per_s": round(self.storage_images_per_s),
            "ways": {name: plain(timing) for name, timing in self.ways.items()},
            "decoding_alone": {name: plain(timing) for name, timing in self.limits.items()},
            "ratio_to_native_dali": round(self.ways[STREAM].ratio_to(self.ways[NATIVE]), 3),
            "stages_us": {name: round(value, 1) for name, value in self.stages_us.items()},
            "bottleneck": self.bottleneck,
            "advice": advice(self),
        }


def bench_loader(
    data: Path, options: BenchOptions, progress: Callable[[str, int, int], None] | None = None
) -> LoaderBench:
    """Measure the ways from a data set to batches. Raises DataError, UsageError."""
    manifest = read_manifest(data)
    batch_size = min(options.batch_size, len(manifest))
    count = max(1, min(options.images, len(manifest)) // batch_size) * batch_size
    with tempfile.TemporaryDirectory(prefix="coma-bench-") as scratch, _one_core():
        sample, storage_s = _sample(manifest, Path(scratch), count, batch_size, options.image_size)
        timings = _measure(sample, options.rounds, progress or (lambda *_: None))
    m = sample.manifest
    stages = ("read", "checked", "window", "graph")
    whole = {name: timing for name, timing in timings.items() if name not in stages}
    return LoaderBench(
        data=manifest.folder,
        images=len(m),
        image_bytes=float(m.size.mean()),
        megapixels=float((m.width.astype(np.int64) * m.height).mean() / 1e6),
        shorter_side=float(np.median(np.minimum(m.width, m.height))),
        storage_images_per_s=count / max(storage_s, 1e-9),
        options=options,
        ways={name: timing for name, timing in whole.items() if "alone" not in name},
        limits={name: timing for name, timing in whole.items() if "alone" in name},
        stages_us=_stages(timings[STREAM], *(timings[name] for name in stages)),
    )


def advice(found: LoaderBench) -> str:
    """What to change, in a line."""
    stage, small = found.bottleneck, f"coma shard SOURCE --resize {_SMALL_PX}"
    large = found.shorter_side > 1.2 * _SMALL_PX and found.options.image_size <= _SMALL_PX
    if stage == "storage":
        return "copy the shards to a faster disk" + (f", or make them smaller: {small}" if large else "")
    if stage == "reading":
        return f"make the shards smaller: {small}" if large else "give the loader more cores"
    if stage in ("decoding", "resizing and normalising") and large:
        return f"{small} makes {found.shorter_side:.0f} px on the shorter side {_SMALL_PX}"
    return "give the loader more cores, or decode on a GPU"


def _stages(stream: Timing, read: Timing, checked: Timing, window: Timing, graph: Timing) -> dict[str, float]:
    """CPU microseconds an image; what the parts leave of the whole is the hand-over."""
    total, reads, checks, windows, graphs = (
        1e6 / timing.images_per_cpu_s for timing in (stream, read, checked, window, graph)
    )
    parts = {
        "reading": reads,
        "checking hash and header": checks,
        "decoding": windows,
        "resizing and normalising": max(0.0, graphs - windows),
    }
    return parts | {"hand-over, masks, threads": max(0.0, total - sum(parts.values()))}


def _sample(
    manifest: Manifest, scratch: Path, count: int, batch_size: int, image_size: int
) -> tuple["Sample", float]:
    """Copy images from all over a data set; and the seconds that its storage took to give them."""
    from coma.bench.ways import Sample
    from coma.pipeline.reader import ShardReader, Unreadable

    chosen = np.sort(np.random.default_rng(0).choice(len(manifest), count, replace=False))
    with closing(ShardReader(manifest)) as reader:
        begun_s = time.perf_counter()
        found = reader.read(chosen)
        storage_s = time.perf_counter() - begun_s
    folder = scratch / "files" / "images"
    folder.mkdir(parents=True)
    for number, (data, kind) in enumerate(zip(found, manifest.formats(chosen), strict=True)):
        if isinstance(data, Unreadable):
            raise DataError(f"{manifest.folder}: {data.reason}; look with: coma verify {manifest.folder}")
        (folder / f"{number:06d}.{'jpg' if kind == 'jpeg' else kind}").write_bytes(data.data)
    with _quiet():
        shard(folder.parent, scratch / "shards", ShardOptions(workers=1, check="header"))
    return Sample(folder.parent, read_manifest(scratch / "shards"), image_size, batch_size), storage_s


def _measure(sample: "Sample", rounds: int, progress: Callable[[str, int, int], None]) -> dict[str, Timing]:
    from coma.bench import ways

    made: dict[str, Callable[[Sample], Way]] = {
        STREAM: ways.coma_stream,
        PEER: ways.image_folder,
        "webdataset + PIL": ways.web_dataset,
        NATIVE: ways.native_dali,
        "decoding alone, PIL": ways.pil_decoding,
        "decoding alone, DALI": ways.dali_decoding,
        "read": ways.reading,
        "checked": ways.hashing,
        "window": ways.window_decoding,
        "graph": ways.whole_graph,
    }
    cpu: dict[str, list[float]] = {name: [] for name in made}
    wall: dict[str, list[float]] = {name: [] for name in made}
    with ExitStack() as stack:
        running = {name: stack.enter_context(closing(way(sample))) for name, way in made.items()}
        for way in running.values():
            next(way)  # builds it
        for number in range(rounds):
            for name, way in running.items():
                progress(name, number, rounds)
                cpu_s, wall_s, images = _turn(way, len(sample.manifest))
                cpu[name].append(cpu_s / images)
                wall[name].append(wall_s / images)
    return {name: Timing(tuple(cpu[name]), tuple(wall[name])) for name in made}


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
def _one_core() -> Iterator[None]:
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what sharding says: this is not the user's data set."""
    logger = logging.getLogger("coma.shards")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
