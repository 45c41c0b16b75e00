"""What `coma bench loader` found, and what follows from it."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from coma.bench.options import LoaderOptions
from coma.bench.timing import Timing

PEER = "ImageFolder + PIL"
STREAM = "coma"
NATIVE = "DALI, its own reader"
PARALLEL = ("decoding", "resizing and normalising")
"""The stages of the stream that more cores make faster."""
_LIBRARIES = ("nvidia-dali-cuda120", "pillow", "torch", "torchvision", "webdataset")
_WORTH = 1.1  # times as many images; what gains less is not advised


@dataclass(frozen=True)
class Images:
    """What the sample is like."""

    count: int
    bytes: float
    """Mean."""
    megapixels: float
    """Mean."""
    shorter_side: float
    """Median, pixels."""


@dataclass(frozen=True)
class LoaderBench:
    """What was measured."""

    data: Path
    images: Images
    cores: int
    """That this process may use."""
    storage_images_per_s: float
    """Of the user's own shards, as cached as they are now; one reader, as the stream has."""
    memory_images_per_s: float
    """The same once more: out of the page cache, whatever the storage is."""
    options: LoaderOptions
    batch_size: int
    ways: dict[str, Timing]
    limits: dict[str, Timing]
    """Decoding alone."""
    stages_us: dict[str, float]
    """CPU microseconds an image that each stage of the stream takes; they add up to the stream."""
    resized: tuple[Images, Timing] | None = None
    """The stream on shards made with `--resize`, where that would change most images."""
    peers: tuple[str, ...] = ()
    """Packages compared because they are installed."""
    missing: tuple[str, ...] = ()
    """Packages that are not installed."""
    failed: dict[str, str] | None = None
    """Why a way has no figures."""
    notes: dict[str, str] | None = None
    """Of ways whose figures are not to be compared as they stand."""

    @property
    def cores_fed(self) -> float:
        """How many cores the storage keeps busy, if each does as much as the one measured."""
        return self.storage_images_per_s / self.ways[STREAM].images_per_s

    @property
    def bottleneck(self) -> str:
        """The stage that takes longest, or "storage" if that cannot keep up with this machine's cores.

        If it is no slower than memory, what cannot keep up is no storage.
        """
        if self.cores_fed < self.cores and self.storage_images_per_s < self.memory_images_per_s / 2:
            return "storage"
        return max(self.stages_us, key=self.stages_us.__getitem__)

    @property
    def resizing_gain(self) -> float:
        """How many times as many images a CPU-second the stream gives of resized shards."""
        return 1.0 if self.resized is None else self.resized[1].ratio_to(self.ways[STREAM])

    @property
    def resizing(self) -> str:
        """The command's part that makes such shards."""
        return f"--resize {self.options.resize_px}"

    @property
    def rows(self) -> dict[str, Timing]:
        """The ways from files to batches, the stream's first, and then the limits."""
        rows = {STREAM: self.ways[STREAM]}
        if self.resized is not None:
            rows[f"{STREAM}, {self.resizing}"] = self.resized[1]
        return rows | self.ways | self.limits

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        peer, native = self.ways[PEER], self.ways.get(NATIVE)

        def plain(name: str, timing: Timing) -> dict[str, Any]:
            note = (self.notes or {}).get(name)
            return {
                "images_per_cpu_s": round(timing.images_per_cpu_s, 1),
                "images_per_s": round(timing.images_per_s, 1),
                "ratio": round(timing.ratio_to(peer), 3),
            } | ({} if note is None else {"note": note})

        rows = {name: plain(name, timing) for name, timing in self.rows.items()}
        return {
            "data": str(self.data),
            "images": self.images.count,
            "rounds": self.options.rounds,
            "image_size": self.options.image_size,
            "batch_size": self.batch_size,
            "image_bytes": round(self.images.bytes),
            "megapixels": round(self.images.megapixels, 3),
            "shorter_side": self.images.shorter_side,
            "storage_images_per_s": round(self.storage_images_per_s),
            "memory_images_per_s": round(self.memory_images_per_s),
            "cores": self.cores,
            "ways": {name: row for name, row in rows.items() if name not in self.limits},
            "decoding_alone": {name: row for name, row in rows.items() if name in self.limits},
            "ratio_to_native_dali": None if native is None else round(self.ways[STREAM].ratio_to(native), 3),
            "failed": self.failed or {},
            "not_installed": list(self.missing),
            "versions": {package: version(package) for package in (*_LIBRARIES, *self.peers)},
            "stages_us": {name: round(value, 1) for name, value in self.stages_us.items()},
            "bottleneck": self.bottleneck,
            "advice": advice(self),
        }


def advice(found: LoaderBench) -> str:
    """What to change, in a line."""
    command, stage, resized = f"coma shard SOURCE {found.resizing}", found.bottleneck, found.resized
    if stage == "storage":
        smaller = resized is not None and found.images.bytes > _WORTH * resized[0].bytes
        return "copy the shards to a faster disk" + (f", or make them smaller: {command}" if smaller else "")
    if resized is not None and found.resizing_gain >= _WORTH:
        return (
            f"{command}: {found.resizing_gain:.1f} times as fast, {resized[0].bytes / 1000:,.0f} KB an image"
        )
    if stage in PARALLEL:
        return "give the loader more cores, or decode on a GPU"
    return "larger batches, or more processes: this stage has one thread in each"
