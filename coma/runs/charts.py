"""Line charts as HTML and inline SVG: responsive, offline, dark and light.

The curves are stretched by the browser (`preserveAspectRatio="none"`, strokes keep their width); the figures
on the axes are HTML laid over it in percentages, so that they stay readable at any width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

_MAX_POINTS = 800  # a curve's, whatever the length of the run
_WIDE, _HIGH = 1000, 300  # of the drawing, before it is stretched


@dataclass(frozen=True)
class Curve:
    """One line of a chart: x and y of equal length; `faint` for raw values behind a smoothed line.

    Curves of several series, counted from 0, differ as `series_style` says.
    """

    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False
    series: int | None = None


def series_style(number: int) -> str:
    """Return the CSS classes of a series: one of six colours, dashed from the seventh on."""
    return f"s{number % 6}" + (" dashed" if number >= 6 else "")


def smooth(y: Sequence[float], span: int) -> list[float]:
    """Running mean over the last `span` values (fewer at the start)."""
    total, out = 0.0, []
    for i, value in enumerate(y):
        total += value - (y[i - span] if i >= span else 0.0)
        out.append(total / min(i + 1, span))
    return out


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values inside low..high, about `count` of them, 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 5) if m * power >= rough * 0.999), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def figure(value: float, step: float) -> str:
    """Write a tick: thousands parted, as many digits as the step needs, powers of ten if both are tiny."""
    if value == 0:
        return "0"
    if 0 < step < 1e-3 and abs(value) < 1e-2:
        digits = max(0, math.floor(math.log10(abs(value)) + 1e-9) - math.floor(math.log10(step) + 1e-9))
        return f"{value:.{digits}e}".replace("e-0", "e-")
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 3
    return f"{value:,.{min(decimals, 6)}f}"


def chart(curves: Sequence[Curve], *, title: str, x_name: str, y_name: str, from_zero: bool = False) -> str:
    """Return a `<figure>` with the curves over one pair of linear axes, named with their units."""
    curves = [_finite(curve) for curve in curves]
    curves = [curve for curve in curves if curve.x]
    head = f"<figure><figcaption><b>{escape(title)}</b> <span>{escape(y_name)}</span></figcaption>"
    if not curves:
        return head + "<p class='none'>nothing logged</p></figure>"
    left, right = min(min(c.x) for c in curves), max(max(c.x) for c in curves)
    values = sorted(value for curve in curves for value in curve.y)
    # One early spike must not flatten the rest; what lies above is cut off by the frame.
    top = max(values[int(0.995 * (len(values) - 1))], *(max(c.y[len(c.y) // 10 :]) for c in curves))
    bottom = min(0.0, values[0]) if from_zero else values[0]
    if right == left:
        left, right = left - 0.5, right + 0.5
    margin = 0.06 * (top - bottom) or 0.05 * abs(top) or 1.0
    top, bottom = top + margin, bottom if from_zero and bottom == 0 else bottom - margin

    def across(x: float) -> float:
        return (x - left) / (right - left)

    def down(y: float) -> float:
        return (top - y) / (top - bottom)

    lines, labels = [], []
    y_ticks, x_ticks = ticks(bottom, top), ticks(left, right, 5)
    for value in y_ticks:
        shown = figure(value, y_ticks[1] - y_ticks[0] if len(y_ticks) > 1 else abs(value))
        lines.append(f"<path class='rule' d='M0 {down(value) * _HIGH:.1f}H{_WIDE}'/>")
        labels.append(f"<i class='y' style='top:{down(value):.2%}'>{shown}</i>")
    for value in x_ticks:
        shown = figure(value, x_ticks[1] - x_ticks[0] if len(x_ticks) > 1 else 1)
        labels.append(f"<i class='x' style='left:{across(value):.2%}'>{shown}</i>")
    for curve in curves:
        x, y = _thin(curve.x, curve.y)
        path = "L".join(f"{across(a) * _WIDE:.1f} {down(b) * _HIGH:.1f}" for a, b in zip(x, y, strict=True))
        kind = ("raw" if curve.faint else "line") + (" dot" if len(x) == 1 else "")
        kind += "" if curve.series is None else f" {series_style(curve.series)}"
        lines.append(f"<path class='{kind}' d='M{path}{'h0' if len(x) == 1 else ''}'/>")
    return (
        f"{head}<div class='plot'><svg viewBox='0 0 {_WIDE} {_HIGH}' preserveAspectRatio='none' role='img' "
        f"aria-label='{escape(title, quote=True)}'>{''.join(lines)}</svg>{''.join(labels)}</div>"
        f"<div class='axis'>{escape(x_name)}</div></figure>"
    )


def _finite(curve: Curve) -> Curve:
    pairs = [(a, b) for a, b in zip(curve.x, curve.y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    return replace(curve, x=[a for a, _ in pairs], y=[b for _, b in pairs])


def _thin(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Average runs of points so that at most `_MAX_POINTS` remain."""
    run = -(-len(x) // _MAX_POINTS)
    parts = range(0, len(x), run)
    return (
        [sum(x[i : i + run]) / len(x[i : i + run]) for i in parts],
        [sum(y[i : i + run]) / len(y[i : i + run]) for i in parts],
    )
