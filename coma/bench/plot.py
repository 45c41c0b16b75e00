"""Bars: a picture of what a benchmark found."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _ROW, _BAR, _MARGIN = 960, 44, 26, 24  # pixels
_NAMES = 280
_INK, _FAINT, _MINE, _OTHERS, _LIMITS = "#1c2430", "#6b7686", "#2563c9", "#9aa7b8", "#d9dfe7"


def write_bars(
    path: Path, title: str, note: str, values: Mapping[str, float], *, mine: str, limits: frozenset[str]
) -> None:
    """Write a PNG of horizontal bars, a value each, largest first; `mine` stands out, `limits` recede."""
    ordered = sorted(values.items(), key=lambda item: -item[1])
    top = _MARGIN + 66
    image = Image.new("RGB", (_WIDTH, top + _ROW * len(ordered) + _MARGIN), "white")
    draw = ImageDraw.Draw(image)
    large, normal = ImageFont.load_default(22), ImageFont.load_default(16)
    draw.text((_MARGIN, _MARGIN), title, _INK, large)
    draw.text((_MARGIN, _MARGIN + 32), note, _FAINT, normal)
    room = _WIDTH - _NAMES - _MARGIN - 80  # the figure stands behind its bar
    for row, (name, value) in enumerate(ordered):
        y = top + row * _ROW
        colour = _MINE if name == mine else _LIMITS if name in limits else _OTHERS
        length = room * value / max(ordered[0][1], 1e-9)
        draw.text((_MARGIN, y + _BAR / 2), name, _INK, normal, anchor="lm")
        draw.rectangle((_NAMES, y, _NAMES + length, y + _BAR), colour)
        draw.text((_NAMES + length + 8, y + _BAR / 2), f"{value:,.0f}", _INK, normal, anchor="lm")
    image.save(path)
