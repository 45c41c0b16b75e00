"""Decoding on the GPU beside the CPU's: the same windows of the same images, how alike, and how fast.

The decoders take turns over a sample in memory, by the stream's own graph (`coma.pipeline.decode`). Pictures are
compared in levels of 0 to 255 with those of the CPU, which are compared with PIL's.
"""

import io
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from benchmarks.gpu.part import Measuring
from coma.bench.image_loaders import Sample
from coma.bench.loader import copy_sample
from coma.bench.options import LoaderOptions
from coma.pipeline import MEAN, STD
from coma.pipeline.decode import HW_DECODER_LOAD, Decoder, Encoded
from coma.shards.files import folder_at
from coma.shards.manifest import read_manifest

LOADS = (HW_DECODER_LOAD, 0.0, 0.25, 0.5, 0.8, 0.9, 1.0)
_CPU = "cpu"
_MOST_DB = 100.0
"""For pictures that are equal, whose ratio of signal to noise has no limit."""


def sample_of(measuring: Measuring, folder: Path | None = None) -> Sample:
    """Copy a sample of the data into the part's folder, as files and as shards."""
    images, batch_size, side = (8, 4, 64) if measuring.quick else (1024, 128, 224)
    options = LoaderOptions(images=images, batch_size=batch_size, image_size=side)
    manifest = read_manifest(folder_at(str(measuring.data)))
    sample, *_ = copy_sample(manifest, folder or measuring.scratch, options)
    return sample


def measure_decode(measuring: Measuring) -> None:
    """Compare pictures and rates."""
    sample = sample_of(measuring)
    threads = len(os.sched_getaffinity(0))
    measuring.note(
        f"{len(sample.manifest)} images of {sample.manifest.size.mean() / 1000:.0f} KB in memory, "
        f"batches of {sample.batch_size} at {sample.image_size} px, {threads} threads; levels are of 0 to 255"
    )
    ways: dict[str, dict[str, Any]] = {_CPU: {"device": torch.device("cpu"), "decode_on_gpu": False}}
    if measuring.on_gpu:
        ways["host decodes, gpu normalises"] = {"device": measuring.device, "decode_on_gpu": False}
        for load in LOADS:
            way = {"device": measuring.device, "decode_on_gpu": True, "hw_decoder_load": load}
            ways[f"gpu, engine's load {load:g}"] = way
    pictures = _pictures_by_pil(sample)
    reference, reference_name = pictures, "PIL"
    running: dict[str, Iterator[Tensor]] = {}
    for name, options in ways.items():
        batches = _decoded(sample, threads, options)
        try:
            seen = _levels(next(batches))
        except Exception as error:  # one that cannot be does not keep us from the others
            measuring.put({"way": name}, failed=f"{type(error).__name__}: {error}"[:200])
            continue
        measuring.put({"way": name}, compared_with=reference_name, **_likeness(seen, reference))
        if name == _CPU:
            reference, reference_name = seen, _CPU
        running[name] = batches
    _take_turns(measuring, sample, running)


def _take_turns(measuring: Measuring, sample: Sample, running: dict[str, Iterator[Tensor]]) -> None:
    """Time each decoder over the sample, round after round."""
    batches = max(1, (1 if measuring.quick else 2) * len(sample.manifest) // sample.batch_size)
    rates: dict[str, list[float]] = {name: [] for name in running}
    for _ in measuring.rounds(1 if measuring.quick else 7):
        for name, decoded in running.items():
            for _batch in islice(decoded, 2):  # those that were prepared ahead
                pass
            began_s = _now_s(measuring.device)
            images = sum(len(batch) for batch in islice(decoded, batches))
            rates[name].append(images / (_now_s(measuring.device) - began_s))
            ratio = statistics.median(mine / cpu for mine, cpu in zip(rates[name], rates[_CPU], strict=True))
            measuring.put({"way": name}, images_per_s=statistics.median(rates[name]), ratio_to_cpu=ratio)
    measuring.bars("Images decoded a second", {name: statistics.median(each) for name, each in rates.items()})


def _decoded(sample: Sample, threads: int, options: dict[str, Any]) -> Iterator[Tensor]:
    """Decode batches of the sample without end: [B, 3, S, S], normalised, on the decoder's device."""
    feed = sample.inputs()
    decoder = Decoder(lambda: next(feed), batch_size=sample.batch_size, threads=threads, depth=2, **options)
    with closing(decoder):
        while (images := decoder.run()) is not None:
            if decoder.stream is not None:
                decoder.stream.synchronize()
            yield images


def _now_s(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _levels(images: Tensor) -> Tensor:
    """Undo the normalisation of images [B, 3, S, S]: float32 levels of 0 to 255 on the CPU."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images.float().cpu() * std + mean) * 255


def _likeness(images: Tensor, reference: Tensor) -> dict[str, float]:
    """Compare images [B, 3, S, S] in levels: peak signal-to-noise ratio of all and of the worst, and differences."""
    difference = (images - reference).abs()
    errors = difference.square().mean(dim=(1, 2, 3))
    return {
        "psnr_db": _decibels(float(errors.mean())),
        "worst_psnr_db": _decibels(float(errors.max())),
        "mean_difference": float(difference.mean()),
        "greatest_difference": float(difference.max()),
    }


def _decibels(error: float) -> float:
    return min(_MOST_DB, 10 * float(np.log10(255**2 / max(error, 1e-12))))


def _pictures_by_pil(sample: Sample) -> Tensor:
    """Show the windows of the first batch by PIL, [B, 3, S, S] in levels: decoded whole, cut, resized, mirrored."""
    batch: Encoded = next(sample.inputs())
    shown = []
    for data, (top, left), (high, wide), flip in zip(
        batch.data, batch.crops.start.tolist(), batch.crops.shape.tolist(), batch.crops.flip.tolist(), strict=True
    ):
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data.tobytes()))).convert("RGB")
        image = image.crop((left, top, left + wide, top + high)).resize(
            (batch.side, batch.side), Image.Resampling.BILINEAR
        )
        shown.append(torch.from_numpy(np.array(ImageOps.mirror(image) if flip else image)))
    return torch.stack(shown).permute(0, 3, 1, 2).float()
