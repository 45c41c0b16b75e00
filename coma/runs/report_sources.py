"""Section of a run's report on the data sets of a mixture: share, images, epochs and loss of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from coma.runs.charts import Curve, chart, series_style, smooth

Lines = Sequence[Mapping[str, Any]]


def by_source(steps: Lines, resolved: Mapping[str, Any]) -> str:
    """Return a table and the curves of the loss by data set; nothing for a run on one data set.

    Args:
        steps: lines of metrics.jsonl, one a step.
        resolved: that section of config.json.
    """
    sources = [each for each in resolved.get("sources") or [] if isinstance(each, dict) and "name" in each]
    if not sources or not steps:
        return ""
    names = [str(each["name"]) for each in sources]
    losses = [[(line["step"], line[key]) for line in steps if key in line] for key in map(_loss, names)]
    seen_of = [steps[-1].get(f"source/{name}/samples", 0) for name in names]
    rows, curves = [], []
    for number, (source, name, points) in enumerate(zip(sources, names, losses, strict=True)):
        span = span_of(len(points))
        tail = [loss for _, loss in points[-span:]]
        cells = (
            f"{100 * source.get('share', 0):.4g}%",
            f"{source.get('images', 0):,}",
            f"{seen_of[number]:,}",
            f"{100 * seen_of[number] / max(1, sum(seen_of)):.4g}%",
            f"{steps[-1].get(f'source/{name}/epochs', 0):.3g}",
            f"{sum(tail) / len(tail):.4f}" if tail else "–",
        )
        figures = "".join(f"<td class='n'>{cell}</td>" for cell in cells)
        rows.append(f"<tr><td><b class='key {series_style(number)}'></b>{escape(name)}</td>{figures}</tr>")
        at, values = [step for step, _ in points], smooth([loss for _, loss in points], span)
        curves.append(Curve(at[span - 1 :], values[span - 1 :], series=number))
    heads = ("share", "images", "seen", "of all", "epochs", "loss")
    head = "<th>data set</th>" + "".join(f"<th class='n'>{each}</th>" for each in heads)
    table = f"<div class='scroll'><table><tr>{head}</tr>{''.join(rows)}</table></div>"
    wide = chart(curves, title="Loss by data set", y_name="mean over the last steps with images of it", x_name="step")
    return f"<h2>Data sets</h2>{table}<div class='wide'>{wide}</div>"


def span_of(count: int) -> int:
    """Return the number of steps over which the loss of `count` steps is smoothed."""
    return max(1, min(100, count // 20))


def _loss(name: str) -> str:
    return f"source/{name}/loss"
