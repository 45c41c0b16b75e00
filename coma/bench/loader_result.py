"""Result of `coma bench loader`: rates, bottleneck and advice, as text, JSON and a plot."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL

from coma.bench.options import LoaderOptions
from coma.bench.plot import write_bars
from coma.bench.table import table
from coma.bench.timing import Timing
from coma.errors import shell_command
from coma.installed.versions import library_versions
from coma.pipeline.decode import DALI_VERSION

REFERENCE = "ImageFolder + PIL"
"""The loader that ratios are taken to."""
STREAM = "coma"
NATIVE_DALI = "DALI, its own reader"
PARALLEL = ("decoding", "resizing and normalising")
"""The stages of the stream that more cores make faster."""
_WORTH = 1.1  # times as many images; what gains less is not advised


@dataclass(frozen=True)
class Images:
    """Number and size of the images of a sample."""

    count: int
    bytes: float
    """Mean bytes of an encoded image."""
    megapixels: float
    """Mean over the images."""
    shorter_side: float
    """Median over the images, in pixels."""


@dataclass(frozen=True)
class LoaderResult:
    """Rates of the loaders, of the stream's stages and of the storage."""

    data: Path
    images: Images
    cores: int
    """Number of cores that this process may use."""
    storage_images_per_s: float
    """Rate of one reader, as the stream has, on the user's own shards, as far as they are cached now."""
    memory_images_per_s: float
    """Rate of reading the same once more: out of the page cache, whatever the storage is."""
    options: LoaderOptions
    batch_size: int
    loaders: dict[str, Timing]
    decoding_alone: dict[str, Timing]
    """Rates of decoders alone, which no loader that uses them can pass."""
    stages_us: dict[str, float]
    """CPU microseconds an image in each stage of the stream; together they are the stream's."""
    resized: tuple[Images, Timing] | None = None
    """The stream on shards made with `--resize`, where that would change most images."""
    failed: dict[str, str] | None = None
    """Reason for each loader that could not be measured."""

    @property
    def cores_fed(self) -> float:
        """Number of cores that the storage keeps busy, if each does as much as the one measured."""
        return self.storage_images_per_s / self.loaders[STREAM].images_per_s

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
        """Images a CPU-second that the stream gives of resized shards, as a multiple of those of the originals."""
        return 1.0 if self.resized is None else self.resized[1].ratio_to(self.loaders[STREAM])

    @property
    def resizing(self) -> str:
        """The option of `coma shard` that makes such shards."""
        return f"--resize {self.options.resize_px}"

    @property
    def rows(self) -> dict[str, Timing]:
        """All timings by name: the stream's, the other loaders', then decoding alone."""
        rows = {STREAM: self.loaders[STREAM]}
        if self.resized is not None:
            rows[f"{STREAM}, {self.resizing}"] = self.resized[1]
        return rows | self.loaders | self.decoding_alone

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        reference, native = self.loaders[REFERENCE], self.loaders.get(NATIVE_DALI)
        rows = {
            name: {
                "images_per_cpu_s": round(timing.images_per_cpu_s, 1),
                "images_per_s": round(timing.images_per_s, 1),
                "ratio": round(timing.ratio_to(reference), 3),
            }
            for name, timing in self.rows.items()
        }
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
            "ways": {name: row for name, row in rows.items() if name not in self.decoding_alone},
            "decoding_alone": {name: row for name, row in rows.items() if name in self.decoding_alone},
            "ratio_to_native_dali": (None if native is None else round(self.loaders[STREAM].ratio_to(native), 3)),
            "failed": self.failed or {},
            "versions": {
                "nvidia-dali": DALI_VERSION,
                "pillow": PIL.__version__,
                **library_versions("torch", "torchvision"),
            },
            "stages_us": {name: round(value, 1) for name, value in self.stages_us.items()},
            "bottleneck": self.bottleneck,
            "advice": advice(self),
        }

    def to_lines(self) -> list[str]:
        """Return the result as text."""
        images, size, rounds = self.images, self.options.image_size, self.options.rounds
        reference, whole = self.loaders[REFERENCE], sum(self.stages_us.values())
        rates = [
            (
                name,
                f"{timing.images_per_cpu_s:,.0f}",
                f"{timing.images_per_s:,.0f}",
                f"{timing.ratio_to(reference):.2f}x",
            )
            for name, timing in self.rows.items()
        ]
        stages = [(name, f"{us:,.0f}", f"{us / whole:.0%}") for name, us in self.stages_us.items()]
        fed = f"{self.cores_fed:,.0f}" if self.cores_fed >= 10 else f"{self.cores_fed:.1f}"
        return [
            f"{images.count:,} images of {self.data}: {images.bytes / 1000:,.0f} KB, {images.megapixels:.2g} Mpx each",
            f"Batches of {self.batch_size} at {size} px, one core, {rounds} turns; ratios are to PIL's",
            "",
            *table(("loader", "images/CPU-s", "images/s", "ratio"), rates),
            *(_cut(f"failed: {name}: {reason}") for name, reason in (self.failed or {}).items()),
            "",
            *table(("stage of the stream", "us/image", "share"), stages),
            "",
            f"storage     {self.storage_images_per_s:,.0f} images/s, feeds {fed} cores (here {self.cores})",
            f"bottleneck  {self.bottleneck}",
            f"advice      {advice(self)}",
        ]

    def write_plot(self, path: Path) -> None:
        """Draw the rates as a PNG."""
        data = "/".join(self.data.parts[-2:])
        write_bars(
            path,
            f"Images per CPU-second, batches of {self.options.image_size} px",
            f"{self.images.count:,} images of {data}, one core, medians of {self.options.rounds} turns",
            {name: timing.images_per_cpu_s for name, timing in self.rows.items()},
            highlighted={name for name in self.rows if name.split(",")[0] == STREAM},
            faded=self.decoding_alone,
        )


def advice(result: LoaderResult) -> str:
    """Return what the user could change, in a line."""
    command, stage, resized = (
        shell_command("coma", "shard", "SOURCE", "--resize", result.options.resize_px),
        result.bottleneck,
        result.resized,
    )
    if stage == "storage":
        smaller = resized is not None and result.images.bytes > _WORTH * resized[0].bytes
        return "copy the shards to a faster disk" + (f", or make them smaller: {command}" if smaller else "")
    if resized is not None and result.resizing_gain >= _WORTH:
        return f"{command}: {result.resizing_gain:.1f} times as fast, {resized[0].bytes / 1000:,.0f} KB an image"
    if stage in PARALLEL:
        return "give the loader more cores, or decode on a GPU"
    return "larger batches, or more processes: this stage has one thread in each"


def _cut(text: str, width: int = 80) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
