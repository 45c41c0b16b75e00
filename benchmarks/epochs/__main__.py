"""In what part of MAE's epochs, and of its compute, does CoMA reach MAE's linear probe?

    python -m benchmarks.epochs DATA --out FOLDER [--mae-epochs 40] [--fractions 0.05,0.12,0.18,0.25,0.37]
        [--images 10000] [--seeds 0,1,2] [--variant coma] [--variant coma-k2:1e-3] [--image-size 32] [--jobs CORES]

MAE is trained for `--mae-epochs`, every variant for the largest of the fractions of them, on the same images, in the
same order, with AdamW at a constant rate after a warm-up. An exponential average of the weights is scored after each
fraction, so one run tells what every shorter one would have come to. (A row may ask for a cosine instead: then each
fraction is a run of its own.) A variant is a row of benchmarks/epochs/variants.py; NAME:LR[:BATCH] takes another rate
and batch size, as `--reference mae:2e-3` does for MAE. DATA is what `coma shard` makes of a labelled folder of small
images; the probe is tested on split val, else test, else a fifth of train held out.

A run takes one core, and as many go side by side as there are: small networks gain nothing from two. FOLDER gets
runs.jsonl, a line a run, which are not run again when the command is, summary.json and epochs.png.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmarks.epochs.images import load
from benchmarks.epochs.plot import write_plot
from benchmarks.epochs.report import conclusions, rows_of, table, verdicts
from benchmarks.epochs.runs import Settings, append_line, line_of, read_lines
from benchmarks.epochs.side_by_side import run_all, say
from benchmarks.epochs.variants import Variant, variant
from coma.errors import ComaError, UsageError

Number = TypeVar("Number", int, float)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, run what is missing, print the results."""
    given = _parser().parse_args(arguments)
    try:
        _compare(given)
    except ComaError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _compare(given: argparse.Namespace) -> None:
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {given.out}: {error.strerror}; name a folder that can be written") from None
    data = load(given.data, given.images)
    reference = variant(given.reference)
    settings = list(
        plan(
            reference,
            [variant(name) for name in given.variant or ["coma"]],
            mae_epochs=given.mae_epochs,
            fractions=given.fractions,
            seeds=given.seeds,
            images=len(data.train),
            image_size=given.image_size,
            data=data.fingerprint,
        )
    )
    done = read_lines(given.out)
    missing = [run for run in settings if line_of(done, run) is None]
    say(
        f"{len(data.train):,} images, {len(data.test):,} to test on ({data.tested_on}); "
        f"{len(settings)} runs, {len(settings) - len(missing)} of them done before"
    )
    for line in run_all(missing, data, partial(load, given.data, given.images), jobs=given.jobs):
        append_line(given.out, line)
    done = read_lines(given.out)
    rows = rows_of([line for run in settings if (line := line_of(done, run))])
    goal = next(row for row in rows if row.variant == reference.name and row.epochs == given.mae_epochs)
    judged = verdicts(rows, goal)
    summary = {"rows": [asdict(row) for row in rows], "verdicts": [asdict(verdict) for verdict in judged]}
    (given.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    write_plot(given.out / "epochs.png", rows, goal)
    print(table(rows, goal), conclusions(judged, goal), f"plot  {given.out / 'epochs.png'}", sep="\n\n")


def plan(
    reference: Variant,
    variants: Sequence[Variant],
    *,
    mae_epochs: float,
    fractions: Sequence[float],
    seeds: Sequence[int],
    images: int,
    image_size: int,
    data: str,
) -> Iterator[Settings]:
    """Yield all runs of a comparison, a seed at a time; the reference's full length comes first."""
    stops = sorted({round(mae_epochs * part, 3) for part in fractions})
    before = [stop for stop in stops if stop < mae_epochs]
    for seed in seeds:
        for row in {row.name: row for row in (reference, *variants)}.values():
            after = [*before, mae_epochs] if row.name == reference.name else stops
            # A constant rate does not depend on the length: the scores on the way are those of shorter runs.
            runs = [tuple(after)] if row.schedule == "constant" else [(stop,) for stop in reversed(after)]
            for scored_after in runs:
                yield Settings(row, seed, scored_after[-1], scored_after, images, image_size, data)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.epochs", description="MAE's linear probe, in what part of its epochs?"
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="sharded, labelled, small images")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where runs are kept")
    parser.add_argument("--mae-epochs", type=_positive, default=40.0, help="epochs of the reference (default 40)")
    parser.add_argument(
        "--fractions",
        type=_list(_positive),
        default=[0.05, 0.12, 0.18, 0.25, 0.37],
        help="shares of these epochs, after which variants are scored",
    )
    parser.add_argument(
        "--images",
        type=_count,
        default=10_000,
        help="images of train, and at most of the test (default 10000)",
    )
    parser.add_argument("--seeds", type=_list(int), default=[0, 1, 2], help="default 0,1,2")
    parser.add_argument(
        "--variant", action="append", metavar="NAME[:LR[:BATCH]]", help="may be repeated (default coma)"
    )
    parser.add_argument("--reference", default="mae", metavar="NAME[:LR[:BATCH]]", help="default mae")
    parser.add_argument("--image-size", type=_count, default=32, metavar="PX", help="default 32")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--jobs", type=_count, default=cores, help=f"runs side by side (default {cores}, the cores)")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _list(of: Callable[[str], Number]) -> Callable[[str], list[Number]]:
    def parse(text: str) -> list[Number]:
        return [of(part) for part in text.split(",")]

    return parse


if __name__ == "__main__":
    main()
