"""The stream to the device beside DALI's own reader, ImageFolder with all cores, and batches held in memory.

All make the same batches of random windows of the same files, as `coma bench loader` does, but with all cores, and on
the device. They take turns; before each, as many batches go uncounted as are prepared ahead, so that none of those
counted was made while another loader had its turn. A batch has arrived when the device is done.
"""

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]

from benchmarks.gpu.decoding import sample_of
from benchmarks.gpu.part import Measuring
from coma.bench.image_loaders import Sample, coma_stream, native_dali, pil_transform
from coma.bench.timing import Loading

STREAM = "coma's stream"
_AHEAD = 6  # batches of a stream or graph: read, in the graph, ready
_PER_WORKER = 2  # batches that each process of a DataLoader prepares
_HELD = 4


@dataclass(frozen=True)
class _Loader:
    start: Callable[[], Loading]
    ahead: int
    """Number of batches that may be prepared before they are asked for."""


def measure_stream(measuring: Measuring) -> None:
    """Time the loaders by turns."""
    sample = sample_of(measuring)
    least_s = 0.2 if measuring.quick else 3.0
    measuring.note(
        f"{len(sample.manifest)} images of {sample.manifest.size.mean() / 1000:.0f} KB in the page cache, batches of "
        f"{sample.batch_size} at {sample.image_size} px, {len(os.sched_getaffinity(0))} cores; turns of {least_s:g} s"
    )
    loaders = _loaders(measuring, sample)
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    with ExitStack() as stack:
        running: dict[str, Loading] = {}
        for name, loader in loaders.items():
            running[name] = stack.enter_context(closing(loader.start()))
        for _ in measuring.rounds(1 if measuring.quick else 5):
            for name, loading in list(running.items()):
                try:
                    rates[name].append(_rate(loading, loaders[name].ahead, least_s, measuring.device))
                except Exception as error:  # anything may be wrong with other people's libraries
                    if name == STREAM:
                        raise
                    measuring.put({"loader": name}, failed=f"{type(error).__name__}: {error}"[:200])
                    del running[name]
                    continue
                ratio = statistics.median(a / b for a, b in zip(rates[STREAM], rates[name], strict=True))
                measuring.put(
                    {"loader": name},
                    images_per_s=statistics.median(rates[name]),
                    least=min(rates[name]),
                    most=max(rates[name]),
                    stream_is_times_as_fast=ratio,
                )
        measuring.bars(
            f"Images a second at {sample.image_size} px, on the device",
            {name: statistics.median(taken) for name, taken in rates.items() if taken},
        )
        measuring.end()  # other people's workers take their time to end, or do not


def _loaders(measuring: Measuring, sample: Sample) -> dict[str, _Loader]:
    device, cores = str(measuring.device), len(os.sched_getaffinity(0))
    gpu = measuring.device.index if measuring.on_gpu else None
    loaders = {STREAM: _Loader(lambda: coma_stream(sample, workers=cores, device=device), _AHEAD)}
    if measuring.on_gpu:
        on_host = _Loader(lambda: coma_stream(sample, workers=cores, device=device, decode="cpu"), _AHEAD)
        loaders[f"{STREAM}, --decode cpu"] = on_host
    return loaders | {
        "DALI's reader": _Loader(lambda: native_dali(sample, threads=cores, gpu=gpu), _AHEAD),
        "ImageFolder + PIL": _Loader(lambda: _image_folder(sample, cores, measuring.device), _PER_WORKER * cores),
        "in memory": _Loader(lambda: _in_memory(sample, measuring.device), 0),
    }


def _image_folder(sample: Sample, workers: int, device: torch.device) -> Loading:
    files = ImageFolder(str(sample.folder), pil_transform(sample.image_size), is_valid_file=lambda _: True)
    batches: DataLoader[tuple[torch.Tensor, torch.Tensor]] = DataLoader(
        files,
        sample.batch_size,
        sampler=torch.utils.data.RandomSampler(files, replacement=True, num_samples=2**30),
        drop_last=True,
        num_workers=workers,
        prefetch_factor=_PER_WORKER,
        pin_memory=device.type == "cuda",
        multiprocessing_context="forkserver",  # this process has threads, which do not come along into a fork
    )
    for images, _ in batches:
        yield len(images.to(device, non_blocking=True))


def _in_memory(sample: Sample, device: torch.device) -> Loading:
    """Give the same few batches again and again out of the host's memory: what copying alone costs."""
    side = sample.image_size
    held = [torch.randn(sample.batch_size, 3, side, side) for _ in range(_HELD)]
    if device.type == "cuda":
        held = [batch.pin_memory() for batch in held]
    for batch in itertools.cycle(held):
        yield len(batch.to(device, non_blocking=True) if device.type == "cuda" else batch.clone())


def _rate(loading: Iterator[int], ahead: int, least_s: float, device: torch.device) -> float:
    """Return images a second over at least `least_s`, after the batches that were prepared ahead."""
    for _ in itertools.islice(loading, 1 + ahead):  # the very first builds the loader
        pass
    _wait(device)
    began_s, images = time.perf_counter(), 0
    while (took_s := time.perf_counter() - began_s) < least_s or not images:
        images += next(loading)
        _wait(device)
    return images / took_s


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
