"""How fast images are packed into shards, per second of CPU, beside what one would write by hand.

    python -m benchmarks.sharding FOLDER [--images 2000] [--rounds 5] [--json OUT]

Every way packs the same files in this one process, one way after the other, round after round; a ratio is the
median over the rounds, so that what else the machine does strikes all alike. CPU time is user and system time.
All files are read once before, and written ones go to the temporary folder: disks are not what is measured,
but the copying in and out of the page cache is. `coma` hashes, indexes, keeps the facts of every image and
syncs the finished files besides; the bare loop does nothing of the kind.
"""

import argparse
import io
import itertools
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import webdataset
from PIL import Image

from coma.shards.images.prepare import PixelOptions
from coma.shards.sources.kinds import is_image_name
from coma.shards.sources.listing import WHOLE_FILE, SourceImage
from coma.shards.write.layout import ShardLayout
from coma.shards.write.one_shard import ShardJob, write_shard
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard

WORKERS = 2
BARS = {"pass-through / TarWriter": 0.9, "checked / decoding alone": 0.9}


@dataclass(frozen=True)
class Timing:
    """Seconds of one way in every round."""

    cpu_s: tuple[float, ...]
    wall_s: tuple[float, ...]


def measure(folder: Path, images: int, rounds: int) -> dict[str, Any]:
    """Run every way `rounds` times over `images` files of a folder, repeated if it has fewer."""
    with tempfile.TemporaryDirectory(prefix="coma-bench-") as name:
        scratch = Path(name)
        files = _copies(folder, scratch / "source", images)
        image_bytes = sum(len(file.read_bytes()) for file in files)  # the page cache is warm from here on
        ways: dict[str, Callable[[Path], None]] = {
            "TarWriter": lambda out: _tar_writer(files, out, with_json=True),
            "TarWriter without json": lambda out: _tar_writer(files, out, with_json=False),
            "pass-through": lambda out: _coma(scratch / "source", files, out, decode=False),
            "decoding alone": lambda _: _decode(files),
            "checked": lambda out: _coma(scratch / "source", files, out, decode=True),
        }
        timings = _alternating(ways, rounds, scratch)
        busy = [_both_busy(scratch, image_bytes) for _ in range(rounds)]
    return {
        "images": len(files),
        "image_bytes": image_bytes,
        "rounds": rounds,
        "images_per_cpu_s": {
            way: round(len(files) / statistics.median(timing.cpu_s), 1) for way, timing in timings.items()
        },
        "images_per_s": {
            way: round(len(files) / statistics.median(timing.wall_s), 1) for way, timing in timings.items()
        },
        "ratios": {
            "pass-through / TarWriter": _ratio(timings["pass-through"], timings["TarWriter"]),
            "pass-through / TarWriter without json": _ratio(timings["pass-through"], timings["TarWriter without json"]),
            "checked / decoding alone": _ratio(timings["checked"], timings["decoding alone"]),
        },
        "bars": BARS,
        "workers": {
            "processes": WORKERS,
            "cpu_s_per_wall_s": round(statistics.median(cpu / wall for cpu, wall in busy), 2),
            "images_per_s": round(len(files) / statistics.median(wall for _, wall in busy), 1),
        },
    }


def _copies(folder: Path, to: Path, images: int) -> list[Path]:
    pictures = sorted(path for path in folder.rglob("*") if is_image_name(path.name))
    if not pictures:
        raise SystemExit(f"no images in {folder}")
    files = []
    for number, path in enumerate(itertools.islice(itertools.cycle(pictures), images)):
        files.append(to / path.parent.name / f"{number:06d}{path.suffix}")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, files[-1])
    return files


def _alternating(ways: dict[str, Callable[[Path], None]], rounds: int, scratch: Path) -> dict[str, Timing]:
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    names = list(ways)
    for number in range(rounds):
        first = number % len(names)
        for way in names[first:] + names[:first]:
            out = scratch / "out"
            out.mkdir()
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            ways[way](out)
            taken[way].append((time.process_time() - cpu_s, time.perf_counter() - wall_s))
            shutil.rmtree(out)
    return {way: Timing(*map(tuple, zip(*times, strict=True))) for way, times in taken.items()}


def _ratio(ours: Timing, theirs: Timing) -> float:
    """Return how many images we pack in the CPU time of one of theirs."""
    return round(statistics.median(t / o for o, t in zip(ours.cpu_s, theirs.cpu_s, strict=True)), 3)


def _tar_writer(files: Sequence[Path], out: Path, with_json: bool) -> None:
    with webdataset.TarWriter(str(out / "shard.tar")) as writer:
        for number, file in enumerate(files):
            sample = {"__key__": f"{number:09d}", "jpg": file.read_bytes(), "cls": number % 1000}
            if with_json:
                sample["json"] = {"source": f"{file.parent.name}/{file.name}", "label": number % 1000}
            writer.write(sample)


def _decode(files: Sequence[Path]) -> None:
    for file in files:
        Image.open(io.BytesIO(file.read_bytes())).load()


def _coma(root: Path, files: Sequence[Path], out: Path, decode: bool) -> None:
    job = ShardJob(
        layout=ShardLayout("train", 0, 0, len(files)),
        root=root,
        images=tuple(_listed(root, files)),
        class_names=None,
        split_folder=out,
        parts_folder=out,
        pixels=PixelOptions(decode=decode),
    )
    write_shard(job, lambda _: None)


def _listed(root: Path, files: Sequence[Path]) -> Iterator[SourceImage]:
    for number, file in enumerate(files):
        path, status = str(file.relative_to(root)), file.stat()
        yield SourceImage(path, path, WHOLE_FILE, status.st_size, status.st_mtime_ns, label=number % 1000, refused=None)


def _both_busy(scratch: Path, image_bytes: int) -> tuple[float, float]:
    """Shard the files in worker processes; return their CPU seconds, and the wall seconds of it all."""
    out = scratch / "out"
    before, begun_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    shard(scratch / "source", out, ShardOptions(shard_bytes=max(1, image_bytes // 16), workers=WORKERS))
    after, wall_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - begun_s
    shutil.rmtree(out)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall_s


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['images']:,} images, {result['image_bytes'] / 1e6:,.1f} MB, {result['rounds']} rounds, "
        f"{os.cpu_count()} cores",
        "",
        f"{'images per second of':<40}{'CPU':>10}{'wall':>10}",
    ]
    for way, rate in result["images_per_cpu_s"].items():
        lines.append(f"  {way:<38}{rate:>10,.0f}{result['images_per_s'][way]:>10,.0f}")
    workers = result["workers"]
    lines += [
        f"  {'coma shard, ' + str(workers['processes']) + ' processes':<38}{'':>10}{workers['images_per_s']:>10,.0f}"
    ]
    lines += ["", f"{'ratio per CPU-second':<40}{'measured':>10}{'bar':>10}"]
    for name, ratio in result["ratios"].items():
        bar = result["bars"].get(name)
        lines.append(f"  {name:<38}{ratio:>10.2f}{bar if bar is not None else '-':>10}")
    lines.append(
        f"  {'CPU-seconds of the processes a second':<38}{workers['cpu_s_per_wall_s']:>10.2f}"
        f"{'of ' + str(workers['processes']):>10}"
    )
    return "\n".join(lines)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="How fast images are packed into shards, per CPU-second.")
    parser.add_argument("folder", type=Path, help="images, in folders or not")
    parser.add_argument("--images", type=int, default=2000, help="how many; files are repeated (default 2000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all ways (default 5)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures to a file")
    given = parser.parse_args()
    result = measure(given.folder, given.images, given.rounds)
    print(_table(result))
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
