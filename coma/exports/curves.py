"""Curves of a run as one PNG, for the model card: the loss, and the scores beside it where there are several."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from coma.runs.charts import figure, smooth, ticks
from coma.runs.lines import is_number

_PANEL, _HEIGHT, _SCALE = 640, 360, 2  # pixels; drawn larger, then reduced, so that lines are smooth
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 28, 48, 46
_INK, _NOTE, _RULE = "#1c2430", "#6b7686", "#e3e7eb"
_COLOURS = ("#0b6bcb", "#c2410c", "#15803d", "#7e22ce", "#6b7686")
_FAINT = "#b8d4f0"
_SCORES = {
    "knn": "20-NN",
    "probe": "linear probe",
    "probe_dinov2": "probe (DINOv2)",
    "probe_mae": "probe (MAE)",
    "accuracy": "accuracy",
}
_MOST_POINTS = 2000
_SMOOTHED = 20
"""A mean is taken over a twentieth of the steps, at most a hundred."""

Points = Sequence[tuple[float, float]]


def curves(lines: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Return a PNG of the loss and of the scores on the run's own data; None where no loss was logged.

    Args:
        lines: those of metrics.jsonl.
    """
    loss = [(line["step"], line["loss"]) for line in lines if is_number(line.get("loss"))]
    if not loss:
        return None
    scores = {
        words: sorted((line["step"], line[name]) for line in lines if is_number(line.get(name)) and "data" not in line)
        for name, words in _SCORES.items()
    }
    scores = {words: points for words, points in scores.items() if len(points) > 1}
    image = Image.new("RGB", ((2 if scores else 1) * _PANEL * _SCALE, _HEIGHT * _SCALE), "white")
    span = max(1, min(100, len(loss) // _SMOOTHED))
    middles = [x for x, _ in loss][span // 2 : len(loss) - (span - 1) // 2]
    smoothed = list(zip(middles, smooth([y for _, y in loss], span)[span - 1 :], strict=True))
    _panel(image, 0, "loss", [("", loss, _FAINT), ("", smoothed, _COLOURS[0])])
    if scores:
        coloured = [(words, points, _COLOURS[i]) for i, (words, points) in enumerate(scores.items())]
        _panel(image, _PANEL, "top-1 %, frozen features" if "accuracy" not in scores else "top-1 %", coloured)
    file = io.BytesIO()
    image.resize((image.width // _SCALE, image.height // _SCALE), Image.Resampling.LANCZOS).save(file, "PNG")
    return file.getvalue()


def _panel(image: Image.Image, left: int, title: str, lines: Sequence[tuple[str, Points, str]]) -> None:
    """Draw lines, each with its name and colour, over one pair of axes."""
    draw = ImageDraw.Draw(image)
    large, normal = (ImageFont.load_default(px * _SCALE) for px in (16, 12))
    xs = [x for _, points, _ in lines for x, _ in points]
    ys = sorted(y for _, points, _ in lines for _, y in points)
    low, high = ys[0], max(ys[int(0.995 * (len(ys) - 1))], *(points[-1][1] for _, points, _ in lines))
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin
    first, last = min(xs), max(xs)
    first, last = (first, last) if last > first else (first - 0.5, last + 0.5)
    x0, x1 = (left + _LEFT) * _SCALE, (left + _PANEL - _RIGHT) * _SCALE
    y0, y1 = _TOP * _SCALE, (_HEIGHT - _BOTTOM) * _SCALE

    def across(x: float) -> float:
        return x0 + (x - first) / (last - first) * (x1 - x0)

    def down(y: float) -> float:
        return min(y1, max(y0, y1 - (y - low) / (high - low) * (y1 - y0)))

    draw.text((x0, 14 * _SCALE), title, _INK, large)
    for axis, marks in (("y", ticks(low, high)), ("x", ticks(first, last))):
        step = marks[1] - marks[0] if len(marks) > 1 else 1.0
        for mark in marks:
            if axis == "y":
                draw.line((x0, down(mark), x1, down(mark)), _RULE, _SCALE)
                draw.text((x0 - 8 * _SCALE, down(mark)), figure(mark, step), _NOTE, normal, anchor="rm")
            elif mark == round(mark):  # no step lies between two steps
                draw.text((across(mark), y1 + 8 * _SCALE), figure(mark, step), _NOTE, normal, anchor="mt")
    draw.text(((x0 + x1) / 2, y1 + 26 * _SCALE), "step", _NOTE, normal, anchor="mt")
    named = [words for words, _, _ in lines if words]
    at = x1 - sum(normal.getlength(words) + 30 * _SCALE for words in named)
    for words, points, colour in lines:
        every = -(-len(points) // _MOST_POINTS)
        path = [(across(x), down(y)) for x, y in points[::every]]
        draw.line(path, colour, 2 * _SCALE, joint="curve")
        if words:
            for x, y in path:
                draw.ellipse((x - 3 * _SCALE, y - 3 * _SCALE, x + 3 * _SCALE, y + 3 * _SCALE), colour)
            draw.line((at, 24 * _SCALE, at + 14 * _SCALE, 24 * _SCALE), colour, 3 * _SCALE)
            draw.text((at + 18 * _SCALE, 24 * _SCALE), words, _INK, normal, anchor="lm")
            at += normal.getlength(words) + 30 * _SCALE
