"""The stream of 13-band tiles beside a DataLoader with tifffile, per CPU-second, turn by turn on one core.

    python -m benchmarks.band_stream OUT [--tiles 96] [--rounds 5] [--image-size 224] [--batch-size 16]

Draws tiles of 256 px, 13 bands of uint16 into OUT: waves with the noise of a sensor, of which deflate saves about a
third. They are written as four kinds of TIFF, and sharded as those bytes and with `coma shard --uncompressed`. The
DataLoader reads the same files by `tifffile.imread`, cuts a random window as torchvision's RandomResizedCrop, resizes
it by torch's antialiased `interpolate` in float32, mirrors and normalises it, and collates batches; it works in this
process, which saves it the copies between processes. A turn is a pass over all tiles from the start of the threads to
their end, so that nothing is prepared outside of it. The bar: twice the DataLoader's images per CPU-second.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import RandomResizedCrop  # type: ignore[import-untyped]

from coma.bench.timing import Timing, one_core
from coma.measure import keep_freed_memory
from coma.pipeline import Stream
from coma.pipeline.crops import CROP_SCALE, RATIO, random_resized_crops
from coma.shards.manifest import read_manifest
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard

BANDS, SIDE = 13, 256
BAR = 2.0
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain strips": {"planarconfig": "contig"},
    "plain tiles, band by band": {"planarconfig": "separate", "tile": (256, 256)},
    "deflated tiles": {"planarconfig": "contig", "tile": (128, 128), "compression": "deflate", "predictor": True},
    "deflated, band by band": {"planarconfig": "separate", "compression": "deflate", "rowsperstrip": 64},
}


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Draw, shard and measure; print the table, and return its lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiles", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    given = parser.parse_args(arguments)
    keep_freed_memory()
    lines = []
    for name, layout in LAYOUTS.items():
        folder = given.out / name.replace(",", "").replace(" ", "-")
        if not (folder / "tiles").is_dir():
            draw(folder / "tiles", given.tiles, layout)
        stored = {"as they are": {}, "uncompressed": {"uncompressed": True}}
        turns: dict[str, Callable[[], int]] = {}
        shards = {}
        for words, options in stored.items():
            data = folder / words.replace(" ", "-")
            if not data.is_dir():
                shard(folder / "tiles", data, ShardOptions(workers=1, channels=BANDS, **options))
            shards[words] = read_manifest(data)
            turns[words] = stream_of(data, given.image_size, given.batch_size)
        turns["tifffile"] = loader_of(folder / "tiles", given.image_size, given.batch_size)
        with one_core():
            timings = measure(turns, given.rounds)
        for words in stored:
            lines.append(line_of(name, words, shards[words].size.mean(), timings))
            print(json.dumps(lines[-1]), flush=True)
    print(table(lines))
    return lines


def draw(folder: Path, tiles: int, layout: dict[str, Any]) -> None:
    """Write tiles as TIFFs of one layout."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    for number in range(tiles):
        chance = np.random.default_rng(number)
        bands = []
        for band in range(BANDS):
            across, down, phase = chance.uniform(0.005, 0.08, 3)
            wave = np.sin(x * across + 60 * phase) + np.cos(y * down + 90 * phase)
            bands.append(1000 + 150 * band + 400 * wave + chance.normal(0, 12, wave.shape))
        array = np.stack(bands).clip(0).astype(np.uint16)
        if layout["planarconfig"] == "contig":
            array = np.ascontiguousarray(np.moveaxis(array, 0, 2))
        tifffile.imwrite(folder / f"{number:05d}.tif", array, photometric="minisblack", **layout)


def measure(turns: dict[str, Callable[[], int]], rounds: int) -> dict[str, Timing]:
    """Time passes of each in turn, after one that is not counted."""
    cpu: dict[str, list[float]] = {name: [] for name in turns}
    wall: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(-1, rounds):
        for name, load in turns.items():
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            images = load()
            if number >= 0:
                cpu[name].append((time.process_time() - cpu_s) / images)
                wall[name].append((time.perf_counter() - wall_s) / images)
    return {name: Timing(tuple(cpu[name]), tuple(wall[name])) for name in turns}


def stream_of(data: Path, image_size: int, batch_size: int) -> Callable[[], int]:
    """Return what loads by coma's stream, with its hashes and masks, the windows of a training epoch."""
    manifest = read_manifest(data)
    samples = np.arange(len(manifest))
    windows = random_resized_crops(samples, 0 * samples, manifest.width, manifest.height, seed=0)
    options: dict[str, Any] = {"training": False, "windows": windows, "workers": 1}

    def load() -> int:
        with Stream(manifest, batch_size=batch_size, image_size=image_size, **options) as stream:
            return sum(len(batch.images) for batch in stream)

    return load


class Tiles(Dataset[torch.Tensor]):
    """The files, as people read them."""

    def __init__(self, folder: Path, image_size: int) -> None:
        self.files = sorted(folder.glob("*.tif"))
        self.image_size = image_size
        self.mean = torch.full((BANDS, 1, 1), 1900.0)
        self.std = torch.full((BANDS, 1, 1), 600.0)

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.files)

    def __getitem__(self, at: int) -> torch.Tensor:
        """Return a random crop [BANDS, S, S], normalised."""
        array = tifffile.imread(self.files[at])
        image = torch.from_numpy(array)
        if image.shape[0] != BANDS:
            image = image.permute(2, 0, 1)
        top, left, height, width = RandomResizedCrop.get_params(image, CROP_SCALE, RATIO)
        window = image[None, :, top : top + height, left : left + width].float()
        square = interpolate(window, (self.image_size, self.image_size), mode="bilinear", antialias=True)[0]
        if torch.rand(()) < 0.5:
            square = square.flip(2)
        return square.sub_(self.mean).div_(self.std)


def loader_of(folder: Path, image_size: int, batch_size: int) -> Callable[[], int]:
    """Return what loads by a DataLoader in this process."""
    batches = DataLoader(Tiles(folder, image_size), batch_size, shuffle=True)
    return lambda: sum(len(images) for images in batches)


def line_of(layout: str, stored: str, tile_bytes: float, timings: dict[str, Timing]) -> dict[str, Any]:
    """Return a row of the table."""
    stream, other = timings[stored], timings["tifffile"]
    return {
        "files": layout,
        "shards": stored,
        "tile_kb": round(tile_bytes / 1000),
        "stream_images_per_cpu_s": round(stream.images_per_cpu_s, 1),
        "tifffile_images_per_cpu_s": round(other.images_per_cpu_s, 1),
        "ratio": round(stream.ratio_to(other), 2),
        "cores": os.cpu_count(),
    }


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return the lines as a table in Markdown."""
    rows = [
        f"| {line['files']} | {line['shards']} | {line['tile_kb']:,} | {line['stream_images_per_cpu_s']} | "
        f"{line['tifffile_images_per_cpu_s']} | {line['ratio']} | {'yes' if line['ratio'] >= BAR else 'no'} |"
        for line in lines
    ]
    head = "| files | in the shards | kB a tile | stream, images/CPU-s | DataLoader | ratio | 2 or more |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


if __name__ == "__main__":
    main()
