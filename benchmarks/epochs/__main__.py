"""In what part of MAE's epochs, and of its compute, does CoMA reach MAE's linear probe?

    python -m benchmarks.epochs choose DATA --out FOLDER --variant coma --variant coma:lr=2e-3 [--epochs 2,4.8]
    python -m benchmarks.epochs compare DATA --out FOLDER [--mae-epochs 40] [--fractions 0.05,0.12,0.2,0.25]

`choose` ranks variants on images of split train that it holds out; it does not open val or test. `compare` takes
what was chosen, the rows CHOSEN of benchmarks/epochs/variants.py and no others, and tests it on split val, else test.
There the MAEs (one of as many parameters as CoMA, one of as much compute for an image) are trained for `--mae-epochs`,
CoMA for the largest of the fractions of them, on the same images, in the same order, with AdamW at a constant rate
after a warm-up, in bfloat16. An exponential average of the weights is scored after
each fraction, so one run tells what every shorter one would have come to. (A row may ask for a cosine instead: then
each fraction is a run of its own.) A variant is a row of variants.py, or a changed one: NAME:FIELD=VALUE,...

A run takes one core, and as many go side by side as there are: small networks gain nothing from two. FOLDER gets
runs.jsonl, a line a run, which are not run again when the command is; `compare` writes summary.json and epochs.png too.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.epochs.images import HELD_OUT, Data, load_to_choose, load_to_compare
from benchmarks.epochs.plot import write_plot
from benchmarks.epochs.report import conclusions, rows_of, table, verdicts
from benchmarks.epochs.runs import Settings, append_line, line_of, read_lines, seconds_of
from benchmarks.epochs.side_by_side import run_all, say
from benchmarks.epochs.variants import Variant, chosen, variant
from coma.errors import ComaError, UsageError

REFERENCES = ("mae", "mae-compute")
"""Chosen rows of full length: MAEs of CoMA's parameters, and of its compute for an image."""

Number = TypeVar("Number", int, float)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, run what is missing, print the results."""
    given = _parser().parse_args(arguments)
    try:
        given.work(given)
    except ComaError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _choose(given: argparse.Namespace) -> None:
    """Rank variants by images of train that are held out."""
    data = load_to_choose(given.data, given.images)
    stops = tuple(sorted(given.epochs))
    settings = [
        Settings(variant(name), seed, stops[-1], stops, len(data.train), given.image_size, data.fingerprint, HELD_OUT)
        for name in given.variant
        for seed in given.seeds
    ]
    rows = rows_of(_run(settings, data, partial(load_to_choose, given.data, given.images), given))
    best_last = sorted(rows, key=lambda row: (row.epochs, statistics.mean(row.probe)))
    print(table(best_last))


def _compare(given: argparse.Namespace) -> None:
    """Test what was chosen."""
    data = load_to_compare(given.data, given.images)
    references = [chosen(name) for name in given.reference or REFERENCES]
    others = [chosen(name) for name in given.variant or ["coma"]]
    settings = list(
        plan(
            references,
            others,
            mae_epochs=given.mae_epochs,
            fractions=given.fractions,
            seeds=given.seeds,
            images=len(data.train),
            image_size=given.image_size,
            data=data.fingerprint,
            tested_on=data.tested_on,
        )
    )
    rows = rows_of(_run(settings, data, partial(load_to_compare, given.data, given.images), given))
    full = {row.variant: row for row in rows if row.epochs == given.mae_epochs}
    goals = [full[reference.name] for reference in references]
    judged = [verdict for goal in goals for verdict in verdicts(rows, goal, [other.name for other in others])]
    summary = {"rows": [asdict(row) for row in rows], "verdicts": [asdict(verdict) for verdict in judged]}
    (given.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    write_plot(given.out / "epochs.png", rows, goals)
    print(table(rows, given.mae_epochs), conclusions(judged), f"plot  {given.out / 'epochs.png'}", sep="\n\n")


def _run(
    settings: Sequence[Settings], data: Data, load: Callable[[], Data], given: argparse.Namespace
) -> list[dict[str, Any]]:
    """Run what is missing in `--out`; return the lines of all that was asked for."""
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {given.out}: {error.strerror}; name a folder that can be written") from None
    done = read_lines(given.out)
    missing = [run for run in settings if line_of(done, run) is None]
    say(
        f"{len(data.train):,} images, {len(data.test):,} to score on ({data.tested_on}); "
        f"{len(settings)} runs, {len(settings) - len(missing)} of them done before"
    )
    if missing:
        hours = sum(seconds_of(run, data) for run in missing) / 3600
        say(f"about {hours:.1f} hours of one core, {hours / min(given.jobs, len(missing)):.1f} on {given.jobs}")
    for line in run_all(missing, data, load, jobs=given.jobs):
        append_line(given.out, line)
    done = read_lines(given.out)
    return [line for run in settings if (line := line_of(done, run))]


def plan(
    references: Sequence[Variant],
    variants: Sequence[Variant],
    *,
    mae_epochs: float,
    fractions: Sequence[float],
    seeds: Sequence[int],
    images: int,
    image_size: int,
    data: str,
    tested_on: str,
) -> Iterator[Settings]:
    """Yield all runs of a comparison, a seed at a time; the references' full length comes first."""
    stops = sorted({round(mae_epochs * part, 3) for part in fractions})
    before = [stop for stop in stops if stop < mae_epochs]
    for seed in seeds:
        for row in {row.name: row for row in (*references, *variants)}.values():
            after = [*before, mae_epochs] if row in references else stops
            # A constant rate does not depend on the length: the scores on the way are those of shorter runs.
            runs = [tuple(after)] if row.schedule == "constant" else [(stop,) for stop in reversed(after)]
            for scored_after in runs:
                yield Settings(row, seed, scored_after[-1], scored_after, images, image_size, data, tested_on)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.epochs", description="MAE's linear probe, in what part of its epochs?"
    )
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("data", type=Path, metavar="DATA", help="sharded, labelled, small images")
    both.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where runs are kept")
    both.add_argument("--images", type=_count, default=10_000, help="images of train to learn from (default 10000)")
    both.add_argument("--image-size", type=_count, default=32, metavar="PX", help="default 32")
    cores = len(os.sched_getaffinity(0))
    both.add_argument("--jobs", type=_count, default=cores, help=f"runs side by side (default {cores}, the cores)")
    commands = parser.add_subparsers(required=True)

    choose = commands.add_parser("choose", parents=[both], help="rank variants on held-out images of train")
    choose.set_defaults(work=_choose)
    choose.add_argument("--variant", action="append", required=True, metavar="NAME[:FIELD=VALUE,...]")
    choose.add_argument("--epochs", type=_list(_positive), default=[2.0, 4.8], help="scored after (default 2,4.8)")
    choose.add_argument("--seeds", type=_list(int), default=[0], help="default 0")

    compare = commands.add_parser("compare", parents=[both], help="test chosen variants on val or test")
    compare.set_defaults(work=_compare)
    compare.add_argument("--mae-epochs", type=_positive, default=40.0, help="epochs of the reference (default 40)")
    compare.add_argument(
        "--fractions",
        type=_list(_positive),
        default=[0.05, 0.12, 0.2, 0.25],
        help="shares of these epochs, after which variants are scored (default 0.05,0.12,0.2,0.25)",
    )
    compare.add_argument("--seeds", type=_list(int), default=[0, 1, 2], help="default 0,1,2")
    compare.add_argument("--variant", action="append", metavar="NAME", help="a chosen row (default coma)")
    compare.add_argument(
        "--reference",
        action="append",
        metavar="NAME",
        help=f"a chosen row of full length (default {' and '.join(REFERENCES)})",
    )
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
