"""What `coma embed` costs beside a bare loop over the same stream: the same images, network and batches, in turn.

    python -m benchmarks.embedding MODEL DATA [--batch-size 64] [--rounds 5] [--untrained]

DATA is sharded. The bare loop loads the network, takes `Stream(DATA, training=False)`, calls the network on each batch
and saves one .npy. `coma embed` does all that it does: parts, keys, labels, table. In each round both run, now one
first and now the other. Given are medians of wall time and of this process's CPU time, which a busy machine disturbs
less, and of the rounds' ratios. The bar: at most 1.1.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coma.embedding.command import run_command
from coma.embedding.options import EmbedOptions
from coma.exports.backbone import load_backbone
from coma.pipeline import Stream

BAR = 1.1
_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@torch.inference_mode()
def bare(options: EmbedOptions, out: Path) -> None:
    """Embed images as one would by hand."""
    backbone = load_backbone(options.model, untrained=options.untrained, image_size=options.image_size)
    like = backbone.stream_options()
    with Stream(options.images, batch_size=options.batch_size, training=False, **like) as stream:
        vectors = torch.cat([backbone.module(batch.images) for batch in stream])
    np.save(out, vectors.numpy())


def measure(options: EmbedOptions, rounds: int) -> dict[str, Any]:
    """Time both in turn; return seconds and ratios, by clock."""
    times: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in _CLOCKS} for name in ("bare", "coma")}
    with tempfile.TemporaryDirectory(prefix="coma-benchmark-") as name:
        folder = Path(name)
        for number in range(rounds):
            order = ("bare", "coma") if number % 2 == 0 else ("coma", "bare")
            for which in order:
                began = {clock: now() for clock, now in _CLOCKS.items()}
                if which == "bare":
                    bare(options, folder / "bare.npy")
                else:
                    fields = {**vars(options), "out": folder / f"{number}.parquet", "split": "train"}
                    run_command(EmbedOptions(**fields))
                for clock, now in _CLOCKS.items():
                    times[which][clock].append(now() - began[clock])
    ratios = {
        clock: [ours / theirs for ours, theirs in zip(times["coma"][clock], times["bare"][clock], strict=True)]
        for clock in _CLOCKS
    }
    return {
        "rounds": rounds,
        "seconds": {name: {c: statistics.median(s) for c, s in clocks.items()} for name, clocks in times.items()},
        "ratio": {clock: statistics.median(each) for clock, each in ratios.items()},
        "ratios": ratios,
        "bar": BAR,
    }


def main() -> None:
    """Parse the command line and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--untrained", action="store_true")
    given = parser.parse_args()
    options = EmbedOptions(
        model=given.model,
        images=given.data,
        batch_size=given.batch_size,
        image_size=given.image_size,
        untrained=given.untrained,
    )
    print(json.dumps(measure(options, given.rounds), indent=2))


if __name__ == "__main__":
    main()
