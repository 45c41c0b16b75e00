"""Layout of a picture: columns of equal tiles under their titles, a row for each image.

Legend: B images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from coma.errors import UsageError
from coma.pictures.display import Pixels

_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
TILE_PX = 176
"""A tile's longer side has at least so many pixels."""
HIDDEN_GREY = 128
_GAP_PX, _TITLE_PX = 6, 16
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


@dataclass(frozen=True, eq=False)
class Column:
    """One column of the picture: its title, and tiles [B, H, W, 3], one for each image."""

    title: str
    tiles: Pixels


def hidden_pixels(visible_units: Tensor, unit_px: int, height: int, width: int) -> NDArray[np.bool_]:
    """Mark the pixels [B, height, width] that lie outside the visible units [B, V] (raster indices)."""
    rows, columns = height // unit_px, width // unit_px
    hidden = torch.ones(len(visible_units), rows * columns, dtype=torch.bool)
    hidden.scatter_(1, visible_units, False)
    grid = hidden.view(-1, rows, 1, columns, 1).expand(-1, rows, unit_px, columns, unit_px)
    return grid.reshape(-1, height, width).numpy()


def enlarge(pixels: Pixels, scale: int) -> Pixels:
    """Enlarge pictures [B, H, W, 3] smoothly by a whole factor."""
    if scale == 1:
        return pixels
    height, width = pixels.shape[1] * scale, pixels.shape[2] * scale
    return np.stack([np.asarray(Image.fromarray(p).resize((width, height), Image.Resampling.BICUBIC)) for p in pixels])


def lay_out(columns: Sequence[Column]) -> Image.Image:
    """Set columns side by side on white, with a row for each image and the titles on top."""
    count, height, width, _ = columns[0].tiles.shape
    font = ImageFont.load_default(_TITLE_PX)
    top = 2 * _TITLE_PX
    page = Image.new("RGB", (len(columns) * (width + _GAP_PX) + _GAP_PX, top + count * (height + _GAP_PX)), _PAPER)
    draw = ImageDraw.Draw(page)
    for c, column in enumerate(columns):
        left = _GAP_PX + c * (width + _GAP_PX)
        draw.text((left + width / 2, top / 2), column.title, _INK, font, anchor="mm")
        for row, tile in enumerate(column.tiles):
            page.paste(Image.fromarray(tile), (left, top + row * (height + _GAP_PX)))
    return page


def check_picture_name(out: Path | str) -> Path:
    """Return `out` as a path; UsageError if it does not end as a picture's name does, or is a folder."""
    out = Path(out)
    if out.suffix.lower() not in _PICTURE_SUFFIXES or out.is_dir():
        raise UsageError(f"{out} is no name for a picture: end it in .png")
    return out


def save_picture(picture: Image.Image, out: Path) -> None:
    """Write a picture, and the folder for it if need be; UsageError if it cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UsageError(f"{out} cannot be written ({reason}): name another picture with --out") from None
