"""Plot of the probe against epochs, multiply-adds and CPU seconds."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from benchmarks.epochs.report import Row
from coma.runs.charts import figure, ticks

_WIDTH, _HEIGHT, _MARGIN = 1200, 560, 28  # pixels
_LEFT, _TOP, _BOTTOM, _GAP = 52, 96, 84, 40  # of a panel
_INK, _FAINT, _RULE = "#1c2430", "#6b7686", "#d9dfe7"
_COLOURS = ("#9a4d00", "#2563c9", "#15803d", "#a21caf", "#b91c1c", "#0e7490", "#57534e", "#ca8a04")


@dataclass(frozen=True)
class _Box:
    """A panel's axes: pixels, and the values at their ends."""

    left: int
    right: int
    top: int
    bottom: int
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        down = (self.y[1] - y) / (self.y[1] - self.y[0])
        return self.left + across * (self.right - self.left), self.top + down * (self.bottom - self.top)


def write_plot(path: Path, rows: Sequence[Row], references: Sequence[Row]) -> None:
    """Write a PNG: a point a score (mean over seeds, a bar from the worst to the best), a line a variant."""
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    large, normal = ImageFont.load_default(20), ImageFont.load_default(14)
    seeds = max(len(row.probe) for row in rows)
    draw.text((_MARGIN, _MARGIN), "Linear probe of frozen features, %", _INK, large)
    note = f"mean of {seeds} seeds, bars from the worst to the best" if seeds > 1 else "one seed"
    dashed = " and ".join(row.variant for row in references)
    draw.text((_MARGIN, _MARGIN + 28), f"{note}; dashed: {dashed} at full length", _FAINT, normal)
    names = list(dict.fromkeys(row.variant for row in rows))
    values = [value for row in rows for value in row.probe]
    pad = 0.08 * (max(values) - min(values)) or 1.0
    y = (min(values) - pad, max(values) + pad)
    panels: tuple[tuple[str, Callable[[Row], float]], ...] = (
        ("epochs", lambda row: row.epochs),
        ("trillions of multiply-adds forward", lambda row: row.macs / 1e12),
        ("CPU seconds of training", lambda row: statistics.mean(row.cpu_s)),
    )
    wide = (_WIDTH - 2 * _MARGIN) // len(panels)
    for number, (x_name, x_of) in enumerate(panels):
        left = _MARGIN + number * wide
        _panel(draw, normal, rows, names, references, (left + _LEFT, left + wide - _GAP // 2), y, x_name, x_of)
    left = _MARGIN + _LEFT
    for name in names:
        colour = _colour(names, name)
        draw.rectangle((left, _HEIGHT - _MARGIN - 12, left + 14, _HEIGHT - _MARGIN - 2), colour)
        draw.text((left + 20, _HEIGHT - _MARGIN - 7), name, _INK, normal, anchor="lm")
        left += 48 + int(normal.getlength(name))
    image.save(path)


def _panel(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    rows: Sequence[Row],
    names: Sequence[str],
    references: Sequence[Row],
    ends: tuple[int, int],
    y: tuple[float, float],
    x_name: str,
    x_of: Callable[[Row], float],
) -> None:
    box = _Box(*ends, _TOP, _HEIGHT - _BOTTOM - 20, (0.0, 1.04 * max(map(x_of, rows))), y)
    for values, vertical in ((ticks(*box.y), False), (ticks(*box.x), True)):
        step = values[1] - values[0] if len(values) > 1 else 1.0
        for value in values:
            where = box.at(value, box.y[0]) if vertical else box.at(0.0, value)
            if not vertical:
                draw.line((where, (box.right, where[1])), _RULE)
            offset, anchor = ((0, 8), "mt") if vertical else ((-8, 0), "rm")
            draw.text((where[0] + offset[0], where[1] + offset[1]), figure(value, step), _FAINT, font, anchor=anchor)
    draw.text(((box.left + box.right) / 2, box.bottom + 28), x_name, _INK, font, anchor="mt")
    for reference in references:
        level = box.at(0, statistics.mean(reference.probe))[1]
        for dash in range(box.left, box.right, 12):
            draw.line((dash, level, min(dash + 6, box.right), level), _colour(names, reference.variant), 2)
    for name in names:
        mine, colour = [row for row in rows if row.variant == name], _colour(names, name)
        points = [box.at(x_of(row), statistics.mean(row.probe)) for row in mine]
        draw.line(points, colour, 2)
        for row, (across, down) in zip(mine, points, strict=True):
            draw.line((across, box.at(0, min(row.probe))[1], across, box.at(0, max(row.probe))[1]), colour, 2)
            draw.ellipse((across - 5, down - 5, across + 5, down + 5), colour)


def _colour(names: Sequence[str], name: str) -> str:
    return _COLOURS[list(names).index(name) % len(_COLOURS)]
