"""Bars: a picture of what a benchmark found."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _ROW, _BAR, _MARGIN = 960, 44, 26, 24  # pixels
_GAP = 16
_INK, _FAINT, _MINE, _OTHERS, _LIMITS = "#1c2430", "#6b7686", "#2563c9", "#9aa7b8", "#d9dfe7"


def write_bars(
    path: Path,
    title: str,
    note: str,
    values: Mapping[str, float],
    *,
    mine: frozenset[str],
    limits: frozenset[str],
) -> None:
    """Write a PNG of horizontal bars, a value each, largest first; `mine` stand out, `limits` recede."""
    ordered = sorted(values.items(), key=lambda item: -item[1])
    top = _MARGIN + 66
    image = Image.new("RGB", (_WIDTH, top + _ROW * len(ordered) + _MARGIN), "white")
    draw = ImageDraw.Draw(image)
    whole = _WIDTH - 2 * _MARGIN
    large, normal = ImageFont.load_default(22), ImageFont.load_default(16)
    draw.text((_MARGIN, _MARGIN), _fitting(title, large, whole), _INK, large)
    draw.text((_MARGIN, _MARGIN + 32), _fitting(note, normal, whole), _FAINT, normal)
    names = [_fitting(name, normal, whole / 2) for name, _ in ordered]
    figures = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for _, value in ordered]
    left = _MARGIN + max(map(normal.getlength, names), default=0) + _GAP
    room = _WIDTH - _MARGIN - left - _GAP - max(map(normal.getlength, figures), default=0)
    for row, (name, value) in enumerate(ordered):
        y = top + row * _ROW
        colour = _MINE if name in mine else _LIMITS if name in limits else _OTHERS
        length = room * value / max(ordered[0][1], 1e-9)
        draw.text((_MARGIN, y + _BAR / 2), names[row], _INK, normal, anchor="lm")
        draw.rectangle((left, y, left + length, y + _BAR), colour)
        draw.text((left + length + _GAP / 2, y + _BAR / 2), figures[row], _INK, normal, anchor="lm")
    image.save(path)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """As much of a text as a width in pixels holds."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
