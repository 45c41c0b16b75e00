"""What a data set of very many samples costs before its first batch: time and memory, each in a fresh process.

    python -m benchmarks.scale [--samples 100000000] [--shard-samples 2300] [--sorted] [--folder SCRATCH]

The manifest is as `coma shard` writes it; its shards are empty files of the right size, nothing is read from
them. "once" is the first load of the manifest, "again" any later one, with a stream and seeks into it; memory
is the most that was resident, files mapped into memory included. The scratch folder takes about 10 GB for 1e8
samples and is emptied in the end.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from coma.shards.manifest import MANIFEST_NAME, schema

CLASSES = 1000
BATCH_SIZE = 4096
SEEKS = 20
IMAGE_BYTES = 110_000
_ROW_GROUP_ROWS = 65_536

ONCE = """
import json, sys, time
from pathlib import Path
from coma.shards.manifest import read_manifest
from benchmarks.scale import resident_bytes
before, begun_s = resident_bytes("VmHWM"), time.perf_counter()
manifest = read_manifest(Path(sys.argv[1]))
print(json.dumps({"load_s": time.perf_counter() - begun_s, "imports_bytes": before,
    "peak_bytes": resident_bytes("VmHWM"), "fingerprint": manifest.fingerprint}))
"""
AGAIN = """
import json, statistics, sys, time
from coma.pipeline import Stream
from coma.shards.manifest import read_manifest
from pathlib import Path
from benchmarks.scale import BATCH_SIZE, SEEKS, resident_bytes
before, times = resident_bytes("VmHWM"), [time.perf_counter()]
manifest = read_manifest(Path(sys.argv[1]))
times.append(time.perf_counter())
stream = Stream(manifest, batch_size=BATCH_SIZE)
times.append(time.perf_counter())
steps = len(manifest) // BATCH_SIZE
for seek in range(SEEKS):
    step = stream.plan(1 + (seek * 7919 + steps // 3) % steps + seek % 3 * steps)
    assert len(manifest.label[step.samples]) == BATCH_SIZE
    times.append(time.perf_counter())
took = [after - before for before, after in zip(times, times[1:])]
print(json.dumps({"load_s": took[0], "stream_s": took[1], "first_seek_s": took[2],
    "seek_s": statistics.median(took[3:]), "ready_s": sum(took[:3]), "imports_bytes": before,
    "peak_bytes": resident_bytes("VmHWM"), "fingerprint": manifest.fingerprint}))
"""


def measure(samples: int, shard_samples: int, in_order: bool, scratch: Path) -> dict[str, Any]:
    """Write a data set into an empty folder and load it twice."""
    data = scratch / "data"
    write_data(data, samples, shard_samples, in_order)
    environment = os.environ | {"COMA_CACHE": str(scratch / "cache")}
    result: dict[str, Any] = {
        "samples": samples,
        "shards": -(-samples // shard_samples),
        "manifest_bytes": (data / MANIFEST_NAME).stat().st_size,
    }
    for name, code in (("once", ONCE), ("again", AGAIN)):
        command = [sys.executable, "-c", code, str(data)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        result[name] = json.loads(done.stdout)
    kept = (scratch / "cache").rglob("*.npy")
    result["column_bytes"] = sum(file.stat().st_size for file in kept)
    return result


def write_data(folder: Path, samples: int, shard_samples: int, in_order: bool) -> None:
    """Write a split of samples that do not exist: labels at random, or in order."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = schema([f"n{label:08d}" for label in range(CLASSES)])
    with pq.ParquetWriter(folder / MANIFEST_NAME, names, compression="zstd") as writer:
        for start in range(0, samples, _ROW_GROUP_ROWS):
            ids = np.arange(start, min(start + _ROW_GROUP_ROWS, samples))
            label = ids * CLASSES // samples if in_order else rng.integers(0, CLASSES, len(ids))
            size = rng.integers(IMAGE_BYTES // 2, IMAGE_BYTES, len(ids))
            key = _padded(ids, 9)
            columns = {
                "key": key,
                "shard": pc.binary_join_element_wise("coma-train-", _padded(ids // shard_samples, 6), ".tar", ""),
                "offset": ids % shard_samples * IMAGE_BYTES + 512,
                "size": size,
                "width": rng.integers(200, 600, len(ids)),
                "height": rng.integers(200, 600, len(ids)),
                "format": ["jpeg"] * len(ids),
                "label": label,
                "xxh3_64": rng.integers(0, 2**64, len(ids), np.uint64),
                "source": pc.binary_join_element_wise("train/n", _padded(label, 8), "/", key, ".JPEG", ""),
            }
            writer.write_table(pa.table([pa.array(columns[f.name]).cast(f.type) for f in names], schema=names))
    for number in range(-(-samples // shard_samples)):
        with (folder / f"coma-train-{number:06d}.tar").open("wb") as shard:
            shard.truncate((shard_samples + 1) * IMAGE_BYTES)


def resident_bytes(name: str) -> int:
    """Return this process's VmHWM (the most that it had in memory) or VmRSS (what it has now)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def _padded(numbers: np.ndarray[Any, Any], width: int) -> pa.Array:
    return pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0")


def _table(result: dict[str, Any]) -> str:
    once, again = result["once"], result["again"]
    return "\n".join(
        [
            f"{result['samples']:,} samples in {result['shards']:,} shards; manifest "
            f"{result['manifest_bytes'] / 1e9:.2f} GB, columns {result['column_bytes'] / 1e9:.2f} GB",
            f"  {'':<34}{'s':>10}{'MiB, and the imports alone':>32}",
            f"  {'load once':<34}{once['load_s']:>10.1f}{_memory(once):>32}",
            f"  {'load again, a stream and a seek':<34}{again['ready_s']:>10.3f}{_memory(again):>32}",
            f"  {'  of it load':<34}{again['load_s']:>10.3f}",
            f"  {'  of it the stream':<34}{again['stream_s']:>10.3f}",
            f"  {'  of it the first seek':<34}{again['first_seek_s']:>10.3f}",
            f"  {'any other seek':<34}{again['seek_s']:>10.4f}",
        ]
    )


def _memory(phase: dict[str, Any]) -> str:
    return f"{phase['peak_bytes'] / 2**20:,.0f}, {phase['imports_bytes'] / 2**20:,.0f}"


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="What very many samples cost before the first batch.")
    parser.add_argument("--samples", type=int, default=10**8, help="number of samples (default 1e8)")
    parser.add_argument("--shard-samples", type=int, default=2300, help="samples of a shard (default 2300)")
    parser.add_argument("--sorted", action="store_true", help="shards sorted by class")
    parser.add_argument("--folder", type=Path, help="where the scratch folder goes")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures to a file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="coma-scale-", dir=given.folder) as scratch:
        result = measure(given.samples, given.shard_samples, given.sorted, Path(scratch))
    print(_table(result))
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
