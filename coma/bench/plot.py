"""Bar chart of a benchmark's result."""

from collections.abc import Collection, Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from coma.bench.table import three_digits

_WIDTH, _ROW, _BAR, _MARGIN = 960, 44, 26, 24  # pixels
_GAP = 16
_INK, _NOTE, _HIGHLIGHTED, _OTHERS, _FADED = "#1c2430", "#6b7686", "#2563c9", "#9aa7b8", "#d9dfe7"


def write_bars(
    path: Path,
    title: str,
    note: str,
    values: Mapping[str, float],
    *,
    highlighted: Collection[str] = (),
    faded: Collection[str] = (),
) -> None:
    """Write a PNG of horizontal bars, one for each named value, the largest first."""
    ordered = sorted(values.items(), key=lambda item: -item[1])
    top = _MARGIN + 66
    image = Image.new("RGB", (_WIDTH, top + _ROW * len(ordered) + _MARGIN), "white")
    draw = ImageDraw.Draw(image)
    whole = _WIDTH - 2 * _MARGIN
    large, normal = ImageFont.load_default(22), ImageFont.load_default(16)
    draw.text((_MARGIN, _MARGIN), _fitting(title, large, whole), _INK, large)
    draw.text((_MARGIN, _MARGIN + 32), _fitting(note, normal, whole), _NOTE, normal)
    names = [_fitting(name, normal, whole / 2) for name, _ in ordered]
    figures = [three_digits(value) for _, value in ordered]
    left = _MARGIN + max(map(normal.getlength, names), default=0) + _GAP
    room = _WIDTH - _MARGIN - left - _GAP - max(map(normal.getlength, figures), default=0)
    for row, (name, value) in enumerate(ordered):
        y = top + row * _ROW
        colour = _HIGHLIGHTED if name in highlighted else _FADED if name in faded else _OTHERS
        length = room * value / max(ordered[0][1], 1e-9)
        draw.text((_MARGIN, y + _BAR / 2), names[row], _INK, normal, anchor="lm")
        draw.rectangle((left, y, left + length, y + _BAR), colour)
        draw.text((left + length + _GAP / 2, y + _BAR / 2), figures[row], _INK, normal, anchor="lm")
    image.save(path)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """Cut a text to what fits into a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
