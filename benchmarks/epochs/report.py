"""Report on the runs: a table, where the reference's final probe is reached, and at what cost."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """Scores of one variant after so many epochs, over seeds."""

    variant: str
    epochs: float
    probe: tuple[float, ...]
    """Percent, one value for each seed, as in the fields below."""
    knn: tuple[float, ...]
    cpu_s: tuple[float, ...]
    macs: float


@dataclass(frozen=True)
class Crossing:
    """Where a variant's probe reaches a target, in epochs."""

    reached: float | None
    """First of the scored epochs after which the probe is the target or better; None: never."""
    between: float | None
    """Epochs at which the line from the score before meets the target; None without a score before."""


@dataclass(frozen=True)
class Verdict:
    """One variant beside the reference's run of full length; costs are ratios to it, at equal accuracy."""

    variant: str
    target: float
    crossing: Crossing
    epochs: float | None
    """Share of the reference's epochs, on the line if there is one."""
    cpu_s: float | None
    macs: float | None


def rows_of(lines: Sequence[dict[str, Any]]) -> list[Row]:
    """Gather the scores in lines of `runs.jsonl` over seeds, the earliest first within a variant."""
    gathered: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for line in lines:
        for point in line["curve"]:
            gathered.setdefault((line["settings"]["variant"]["name"], point["epochs"]), []).append(point)
    rows = [
        Row(
            variant,
            epochs,
            probe=tuple(point["probe"] for point in same),
            knn=tuple(point["knn"] for point in same),
            cpu_s=tuple(point["cpu_s"] for point in same),
            macs=same[0]["macs"],
        )
        for (variant, epochs), same in gathered.items()
    ]
    names = list(dict.fromkeys(row.variant for row in rows))
    return sorted(rows, key=lambda row: (names.index(row.variant), row.epochs))


def crossing(points: Sequence[tuple[float, float]], target: float) -> Crossing:
    """Find where points (epochs, probe) first reach a target."""
    before: tuple[float, float] | None = None
    for epochs, probe in sorted(points):
        if probe >= target:
            if before is None:
                return Crossing(epochs, None)
            part = (target - before[1]) / (probe - before[1])
            return Crossing(epochs, before[0] + part * (epochs - before[0]))
        before = (epochs, probe)
    return Crossing(None, None)


def verdicts(rows: Sequence[Row], reference: Row) -> list[Verdict]:
    """Judge every variant by the mean probe of the reference; costs grow with epochs, so they go by the epoch."""
    target = statistics.mean(reference.probe)
    judged = []
    for name in dict.fromkeys(row.variant for row in rows if row.variant != reference.variant):
        mine = [row for row in rows if row.variant == name]
        where = crossing([(row.epochs, statistics.mean(row.probe)) for row in mine], target)
        at = where.reached if where.between is None else where.between
        if at is None:
            judged.append(Verdict(name, target, where, None, None, None))
            continue
        run = next(row for row in mine if row.epochs == where.reached)
        part, of_run = at / reference.epochs, at / run.epochs
        cpu_s = of_run * statistics.mean(run.cpu_s) / statistics.mean(reference.cpu_s)
        judged.append(Verdict(name, target, where, part, cpu_s, of_run * run.macs / reference.macs))
    return judged


def table(rows: Sequence[Row], reference: Row | None = None) -> str:
    """Return a table of all runs: mean and spread (standard deviation) over seeds."""
    wide = max(16, *(len(row.variant) for row in rows)) + 1
    of_mae = "" if reference is None else f"{'of MAE':>8}"
    head = f"{'variant':<{wide}}{'epochs':>7}{of_mae}{'seeds':>6}{'probe, %':>13}{'kNN, %':>13}{'CPU s':>8}{'TMACs':>8}"
    lines = [head]
    for row in rows:
        of_mae = "" if reference is None else f"{row.epochs / reference.epochs:>8.0%}"
        lines.append(
            f"{row.variant:<{wide}}{row.epochs:>7g}{of_mae}{len(row.probe):>6}"
            f"{_spread(row.probe):>13}{_spread(row.knn):>13}{statistics.mean(row.cpu_s):>8.0f}{row.macs / 1e12:>8.1f}"
        )
    return "\n".join(lines)


def conclusions(judged: Sequence[Verdict], reference: Row) -> str:
    """Return a line for each variant: where it reaches the reference, and what that costs."""
    lines = []
    for verdict in judged:
        goal = f"{reference.variant}'s {verdict.target:.1f}% of {reference.epochs:g} epochs"
        reached, between = verdict.crossing.reached, verdict.crossing.between
        if reached is None:
            lines.append(f"{verdict.variant} does not reach {goal}")
            continue
        where = "at the latest" if between is None else f"on a line, {between:.1f} epochs: {verdict.epochs:.0%}"
        lines.append(
            f"{verdict.variant} reaches {goal} in {reached:g} ({reached / reference.epochs:.0%} of them; {where});\n"
            f"  at equal accuracy {verdict.cpu_s:.2f} of its CPU seconds, {verdict.macs:.2f} of its multiply-adds"
        )
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"
