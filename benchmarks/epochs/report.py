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

    @property
    def at(self) -> float | None:
        """Epochs on the line, or else those of the first score."""
        return self.reached if self.between is None else self.between


@dataclass(frozen=True)
class Verdict:
    """One variant beside a reference's run of full length; costs are ratios to it, at equal accuracy."""

    variant: str
    reference: str
    full_length: float
    """Epochs of the reference."""
    target: float
    """Mean probe of the reference, percent."""
    crossing: Crossing
    """Of the mean over seeds."""
    epochs: float | None
    """Share of the reference's epochs, on the line if there is one."""
    by_seed: tuple[float | None, ...]
    """The same share for each seed, against the reference of that seed; None: not reached."""
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


def verdicts(rows: Sequence[Row], reference: Row, variants: Sequence[str]) -> list[Verdict]:
    """Judge variants by the mean probe of a reference; costs grow with epochs, so they go by the epoch."""
    return [_verdict([row for row in rows if row.variant == name], reference) for name in variants]


def _verdict(rows: Sequence[Row], reference: Row) -> Verdict:
    target = statistics.mean(reference.probe)
    where = crossing([(row.epochs, statistics.mean(row.probe)) for row in rows], target)
    by_seed = tuple(
        _share(crossing([(row.epochs, row.probe[seed]) for row in rows], goal), reference)
        for seed, goal in enumerate(reference.probe)
    )
    cpu_s = macs = None
    if where.at is not None:
        run = next(row for row in rows if row.epochs == where.reached)
        of_run = where.at / run.epochs
        cpu_s = of_run * statistics.mean(run.cpu_s) / statistics.mean(reference.cpu_s)
        macs = of_run * run.macs / reference.macs
    return Verdict(
        variant=rows[0].variant,
        reference=reference.variant,
        full_length=reference.epochs,
        target=target,
        crossing=where,
        epochs=_share(where, reference),
        by_seed=by_seed,
        cpu_s=cpu_s,
        macs=macs,
    )


def _share(where: Crossing, reference: Row) -> float | None:
    """Share of the reference's epochs after which its probe is reached, on the line if there is one."""
    return None if where.at is None else where.at / reference.epochs


def table(rows: Sequence[Row], full_length: float | None = None) -> str:
    """Return a table of all runs: mean and spread (standard deviation) over seeds, epochs as a share of MAE's."""
    wide = max(16, *(len(row.variant) for row in rows)) + 1
    of_mae = "" if full_length is None else f"{'of MAE':>8}"
    head = f"{'variant':<{wide}}{'epochs':>7}{of_mae}{'seeds':>6}{'probe, %':>13}{'kNN, %':>13}{'CPU s':>8}{'TMACs':>8}"
    lines = [head]
    for row in rows:
        of_mae = "" if full_length is None else f"{row.epochs / full_length:>8.0%}"
        lines.append(
            f"{row.variant:<{wide}}{row.epochs:>7g}{of_mae}{len(row.probe):>6}"
            f"{_spread(row.probe):>13}{_spread(row.knn):>13}{statistics.mean(row.cpu_s):>8.0f}{row.macs / 1e12:>8.1f}"
        )
    return "\n".join(lines)


def conclusions(judged: Sequence[Verdict]) -> str:
    """Return some lines for each verdict: where the reference is reached, for each seed, and what that costs."""
    lines = []
    for verdict in judged:
        goal = f"{verdict.reference}'s {verdict.target:.1f}% of {verdict.full_length:g} epochs"
        reached, between = verdict.crossing.reached, verdict.crossing.between
        if reached is None:
            lines.append(f"{verdict.variant} does not reach {goal}")
        else:
            where = "at the latest" if between is None else f"on a line, {between:.1f} epochs: {verdict.epochs:.0%}"
            share = reached / verdict.full_length
            lines.append(f"{verdict.variant} reaches {goal} in {reached:g} ({share:.0%} of them; {where})")
            lines.append(
                f"  at equal accuracy {verdict.cpu_s:.2f} of its CPU seconds, {verdict.macs:.2f} of its multiply-adds"
            )
        if len(verdict.by_seed) > 1:
            each = ", ".join("not reached" if share is None else f"{share:.0%}" for share in verdict.by_seed)
            lines.append(f"  each seed against its own: {each}")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"
