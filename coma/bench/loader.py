"""`coma bench loader`: the stream beside ImageFolder and DALI's own reader, on a sample of the user's images.

The sample is copied into a temporary folder, as files and as shards, so that every loader does the very same
work out of the page cache; how fast the user's own storage gives the images is measured as they are copied. The
loaders take turns, round after round, on one core; a ratio is the median of the rounds' ratios, so that what else
the machine does strikes all alike. CPU time is user and system time of all threads.
"""

import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from coma.bench import stages
from coma.bench.image_loaders import DECODING_ALONE, LOADERS, Sample
from coma.bench.loader_result import PARALLEL, REFERENCE, STREAM, Images, LoaderResult
from coma.bench.options import LoaderOptions
from coma.bench.timing import Loading, Timing, one_core, take_turns
from coma.errors import DataError, UsageError, shell_command
from coma.pipeline.reader import ShardReader, Unreadable
from coma.shards.manifest import Manifest, read_manifest
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard

_RESIZED = "resized"


def bench_loader(
    data: Path,
    options: LoaderOptions,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    others: Mapping[str, Callable[[Sample], Loading]] | None = None,
) -> LoaderResult:
    """Measure the loaders, the stream's stages and the storage.

    Args:
        data: sharded data set.
        options: what to measure.
        progress: called before each turn with the loader's name, the rounds done and the rounds in all.
        others: more loaders, by name, to be measured in the same turns.

    Raises:
        DataError: the data set is missing or damaged, or the stream or ImageFolder fails on it.
        UsageError: an absurd number.
    """
    manifest = read_manifest(data)
    if manifest.pixels is not None:
        raise UsageError(
            f"{manifest.folder} has {manifest.pixels.identity}, which ImageFolder and DALI do not read: the stream is "
            "measured on such samples by python -m benchmarks.band_stream"
        )
    cores = len(os.sched_getaffinity(0))
    with _scratch() as scratch, one_core():
        sample, storage_s, memory_s = copy_sample(manifest, scratch, options)
        small = _resized(sample, options.resize_px)
        loaders = {**LOADERS, **(others or {})}
        turns = {name: partial(load, sample) for name, load in {**loaders, **DECODING_ALONE, **stages.STAGES}.items()}
        if small is not None:
            turns[_RESIZED] = partial(LOADERS[STREAM], small)
        timings, failed = take_turns(
            turns,
            len(sample.manifest),
            options.rounds,
            progress or (lambda *_: None),
            needed={STREAM, REFERENCE, *stages.STAGES, _RESIZED},
        )
    return LoaderResult(
        data=manifest.folder,
        images=_described(sample.manifest),
        cores=cores,
        storage_images_per_s=len(sample.manifest) / storage_s,
        memory_images_per_s=len(sample.manifest) / memory_s,
        options=options,
        batch_size=sample.batch_size,
        loaders={name: timings[name] for name in loaders if name in timings},
        decoding_alone={name: timings[name] for name in DECODING_ALONE if name in timings},
        stages_us=_stages(timings[STREAM], *(timings[name] for name in stages.STAGES)),
        resized=None if small is None else (_described(small.manifest), timings[_RESIZED]),
        failed=failed,
    )


def _stages(stream: Timing, read: Timing, checked: Timing, window: Timing, graph: Timing) -> dict[str, float]:
    """Return CPU microseconds an image in each stage; what they leave of the stream's is the hand-over."""
    total, reads, checks, windows, graphs = (
        1e6 / timing.images_per_cpu_s for timing in (stream, read, checked, window, graph)
    )
    parts = {
        "reading": reads,
        "checking hash and header": checks,
        PARALLEL[0]: windows,
        PARALLEL[1]: max(0.0, graphs - windows),
    }
    return parts | {"hand-over, masks, threads": max(0.0, total - sum(parts.values()))}


def _described(m: Manifest) -> Images:
    return Images(
        count=len(m),
        bytes=float(m.size.mean()),
        megapixels=float(_megapixels(m).mean()),
        shorter_side=float(np.median(np.minimum(m.width, m.height))),
    )


def _megapixels(m: Manifest) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return m.width * m.height.astype(np.float64) / 1e6


def copy_sample(manifest: Manifest, scratch: Path, options: LoaderOptions) -> tuple[Sample, float, float]:
    """Copy images from all over a data set; return also the seconds to read them, and to read them again."""
    images, batch_size = options.sample_size(float(_megapixels(manifest).mean()))
    batch_size = min(batch_size, images, len(manifest))
    count = max(1, min(images, len(manifest)) // batch_size) * batch_size
    chosen = np.sort(np.random.default_rng(0).choice(len(manifest), count, replace=False))
    with closing(ShardReader(manifest)) as reader:
        begun_s = time.perf_counter()
        images_read = reader.read(chosen)
        storage_s = time.perf_counter() - begun_s
        reader.read(chosen)
        memory_s = time.perf_counter() - begun_s - storage_s
    folder = scratch / "files" / "all"  # one class
    folder.mkdir(parents=True)
    for number, (data, kind) in enumerate(zip(images_read, manifest.formats(chosen), strict=True)):
        if isinstance(data, Unreadable):
            raise DataError(
                f"{manifest.folder}: {data.reason}; look with: {shell_command('coma', 'verify', manifest.folder)}"
            )
        (folder / f"{number:06d}.{'jpg' if kind == 'jpeg' else kind}").write_bytes(data.data)
    shards = _sharded(folder.parent, scratch / "shards", None)
    return Sample(scratch, folder.parent, shards, options.image_size, batch_size), storage_s, memory_s


def _resized(sample: Sample, resize_px: int) -> Sample | None:
    """Return the sample in shards made with `--resize`, unless most of it is small JPEGs already."""
    m = sample.manifest
    others = np.array([kind != "jpeg" for kind in m.formats(range(len(m)))])
    if np.mean(others | (np.minimum(m.width, m.height) > resize_px)) <= 0.5:
        return None
    return replace(sample, manifest=_sharded(sample.folder, sample.scratch / "resized", resize_px))


def _sharded(folder: Path, out: Path, resize_px: int | None) -> Manifest:
    """Shard a folder without sharding's messages, for this is not the user's data set."""
    logger = logging.getLogger("coma.shards")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        shard(folder, out, ShardOptions(workers=1, check="header", resize_px=resize_px))
    finally:
        logger.setLevel(level)
    return read_manifest(out)


@contextmanager
def _scratch() -> Iterator[Path]:
    """Give a temporary folder, and keep what libraries print or warn of out of the result on stdout."""
    with (
        tempfile.TemporaryDirectory(prefix="coma-bench-") as folder,
        warnings.catch_warnings(),
        redirect_stdout(sys.stderr),
    ):
        warnings.simplefilter("ignore")
        yield Path(folder)
