"""`coma bench loader`: the stream beside what else reads images, on a sample of the user's own.

A sample of the images is copied into a temporary folder, as files and as shards, so that every way does the
very same work out of the page cache; how fast the user's own storage gives them is measured as they are
copied. The ways take turns, round after round, on one core; a ratio is the median of the rounds' ratios, so
that what else the machine does strikes all alike. CPU time is user and system time of all threads.
"""

import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coma.bench.findings import NATIVE, PARALLEL, PEER, STREAM, Images, LoaderBench
from coma.bench.options import LoaderOptions
from coma.bench.timing import Timing, one_core, take_turns
from coma.errors import DataError
from coma.shards.manifest import Manifest, read_manifest
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard

if TYPE_CHECKING:
    from coma.bench.ways import Sample, Way

_RESIZED = "resized"


def bench_loader(
    data: Path, options: LoaderOptions, progress: Callable[[str, int, int], None] | None = None
) -> LoaderBench:
    """Measure the ways from a data set to batches. Raises DataError, UsageError."""
    from coma.bench import stages
    from coma.bench.peers import PEERS

    manifest = read_manifest(data)
    peers = [peer for peer in PEERS if peer.installed]
    cores = len(os.sched_getaffinity(0))
    with _scratch() as scratch, one_core():
        sample, storage_s, memory_s = _sample(manifest, scratch, options)
        small = _resized(sample, options.resize_px)
        made = _ways() | {peer.name: peer.way for peer in peers} | _limits()
        turns = {name: partial(way, sample) for name, way in {**made, **stages.STAGES}.items()}
        if small is not None:
            turns[_RESIZED] = partial(made[STREAM], small)
        timings, failed = take_turns(
            turns,
            len(sample.manifest),
            options.rounds,
            progress or (lambda *_: None),
            needed={STREAM, PEER, *stages.STAGES, _RESIZED},
        )
    return LoaderBench(
        data=manifest.folder,
        images=_described(sample.manifest),
        cores=cores,
        storage_images_per_s=len(sample.manifest) / storage_s,
        memory_images_per_s=len(sample.manifest) / memory_s,
        options=options,
        batch_size=sample.batch_size,
        ways={name: timings[name] for name in made if name in timings and name not in _limits()},
        limits={name: timings[name] for name in _limits() if name in timings},
        stages_us=_stages(timings[STREAM], *(timings[name] for name in stages.STAGES)),
        resized=None if small is None else (_described(small.manifest), timings[_RESIZED]),
        peers=tuple(peer.package for peer in peers),
        missing=tuple(peer.package for peer in PEERS if peer not in peers),
        failed=failed,
        notes={peer.name: peer.note for peer in peers if peer.note},
    )


def _ways() -> dict[str, Callable[["Sample"], "Way"]]:
    from coma.bench import ways

    return {
        STREAM: ways.coma_stream,
        PEER: ways.image_folder,
        "ImageFolder + torchvision": ways.torchvision_decoding,
        "webdataset + PIL": ways.web_dataset,
        NATIVE: ways.native_dali,
    }


def _limits() -> dict[str, Callable[["Sample"], "Way"]]:
    from coma.bench import ways

    return {"decoding alone, PIL": ways.pil_decoding, "decoding alone, DALI": ways.dali_decoding}


def _stages(stream: Timing, read: Timing, checked: Timing, window: Timing, graph: Timing) -> dict[str, float]:
    """CPU microseconds an image; what the parts leave of the whole is the hand-over."""
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


def _sample(manifest: Manifest, scratch: Path, options: LoaderOptions) -> tuple["Sample", float, float]:
    """Copy images from all over a data set; and the seconds that it took to read them, and to do so again."""
    from coma.bench.ways import Sample
    from coma.pipeline.reader import ShardReader, Unreadable

    images, batch_size = options.sample_size(float(_megapixels(manifest).mean()))
    batch_size = min(batch_size, images, len(manifest))
    count = max(1, min(images, len(manifest)) // batch_size) * batch_size
    chosen = np.sort(np.random.default_rng(0).choice(len(manifest), count, replace=False))
    with closing(ShardReader(manifest)) as reader:
        begun_s = time.perf_counter()
        found = reader.read(chosen)
        storage_s = time.perf_counter() - begun_s
        reader.read(chosen)
        memory_s = time.perf_counter() - begun_s - storage_s
    folder = scratch / "files" / "images"
    folder.mkdir(parents=True)
    for number, (data, kind) in enumerate(zip(found, manifest.formats(chosen), strict=True)):
        if isinstance(data, Unreadable):
            raise DataError(f"{manifest.folder}: {data.reason}; look with: coma verify {manifest.folder}")
        (folder / f"{number:06d}.{'jpg' if kind == 'jpeg' else kind}").write_bytes(data.data)
    shards = _sharded(folder.parent, scratch / "shards", None)
    return Sample(scratch, folder.parent, shards, options.image_size, batch_size), storage_s, memory_s


def _resized(sample: "Sample", resize_px: int) -> "Sample | None":
    """The sample in shards made with `--resize`, unless most of it is small JPEGs already."""
    m = sample.manifest
    others = np.array([kind != "jpeg" for kind in m.formats(range(len(m)))])
    if np.mean(others | (np.minimum(m.width, m.height) > resize_px)) <= 0.5:
        return None
    return replace(sample, manifest=_sharded(sample.folder, sample.scratch / "resized", resize_px))


def _sharded(folder: Path, out: Path, resize_px: int | None) -> Manifest:
    """A folder's shards; without what sharding says, for this is not the user's data set."""
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
    """A temporary folder, which is also where other libraries find room for their own files meanwhile.

    Nothing of what they say gets between the results.
    """
    with tempfile.TemporaryDirectory(prefix="coma-bench-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = tempfile.tempdir, os.environ.get("TMPDIR")
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        try:
            with redirect_stdout(sys.stderr):
                yield Path(folder)
        finally:
            tempfile.tempdir = before[0]
            if before[1] is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before[1]
