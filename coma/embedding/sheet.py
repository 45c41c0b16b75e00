"""Contact sheet of neighbours: images with those nearest to them, near-duplicates and outliers, with similarities."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from coma.embedding.images import ImageSet, Section
from coma.errors import ComaError
from coma.shards.describe.contact_sheet import centred, displayed, read_displayed
from coma.shards.files import write_atomically
from coma.shards.images.options import MOST_PIXELS
from coma.shards.images.prepare import BadImageError, PixelOptions
from coma.shards.sources.parquet.spool import spool
from coma.shards.sources.reader import SourceReader

_CELL_PX, _GAP_PX, _MARGIN_PX, _CAPTION_PX, _TITLE_PX = 128, 8, 16, 18, 30
_PAGE, _MAT, _BORDER, _INK, _QUERY = "#ffffff", "#f4f4f5", "#d4d4d8", "#52525b", "#ca5a16"


@dataclass(frozen=True)
class Cell:
    """An image of the sheet."""

    image: tuple[str, str]
    """Split and key."""
    caption: str
    query: bool = False
    """Whether the others of its line are what lies near it."""


@dataclass(frozen=True)
class Block:
    """Lines of cells under a title."""

    title: str
    lines: tuple[tuple[Cell, ...], ...]


def write_sheet(images: ImageSet, blocks: Sequence[Block], path: Path) -> None:
    """Draw blocks one below the other into a PNG."""
    wanted = {cell.image for block in blocks for line in block.lines for cell in line}
    pictures = read_pictures(images, wanted)
    across, down = _CELL_PX + _GAP_PX, _CELL_PX + _CAPTION_PX + _GAP_PX
    columns = max(len(line) for block in blocks for line in block.lines)
    height = sum(_TITLE_PX + len(block.lines) * down for block in blocks) + 2 * _MARGIN_PX
    sheet = Image.new("RGB", (columns * across - _GAP_PX + 2 * _MARGIN_PX, height), _PAGE)
    draw, top = ImageDraw.Draw(sheet), _MARGIN_PX
    for block in blocks:
        draw.text((_MARGIN_PX, top), block.title, _INK, ImageFont.load_default(15))
        top += _TITLE_PX
        for line in block.lines:
            for column, cell in enumerate(line):
                _draw(sheet, draw, cell, pictures.get(cell.image), _MARGIN_PX + column * across, top)
            top += down
    png = io.BytesIO()
    sheet.save(png, "PNG")
    write_atomically(path, png.getvalue())


def _draw(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, picture: Image.Image | None, left: int, top: int
) -> None:
    edge = (left, top, left + _CELL_PX - 1, top + _CELL_PX - 1)
    draw.rectangle(edge, _MAT, _BORDER)
    if picture is None:
        centred(draw, "does not decode", left, top + _CELL_PX // 2 - 6, _CELL_PX)
    else:
        whole = ImageOps.contain(picture, (_CELL_PX - 2, _CELL_PX - 2), Image.Resampling.LANCZOS)
        sheet.paste(whole, (left + (_CELL_PX - whole.width) // 2, top + (_CELL_PX - whole.height) // 2))
    if cell.query:
        draw.rectangle(edge, outline=_QUERY, width=3)
    centred(draw, cell.caption, left, top + _CELL_PX + 3, _CELL_PX)


def read_pictures(images: ImageSet, wanted: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], Image.Image | None]:
    """Read images by split and key, as a person sees them; None for one that cannot be read any more."""
    keys: dict[str, set[str]] = {}
    for split, key in wanted:
        keys.setdefault(split, set()).add(key)
    rows = {
        section.split: _rows_of(section, keys[section.split]) for section in images.sections if section.split in keys
    }
    pictures: dict[tuple[str, str], Image.Image | None] = {}
    with TemporaryDirectory(prefix="coma-sheet-") as folder, ThreadPoolExecutor() as pool:
        images = _readable(images, rows, Path(folder))
        for section in images.sections:
            of_section = rows.get(section.split, {})
            read = pool.map(lambda row, section=section: _picture(images, section, row), of_section.values())
            pictures |= {(section.split, key): picture for key, picture in zip(of_section, read, strict=True)}
    return pictures


def _rows_of(section: Section, keys: set[str]) -> dict[str, int]:
    every = section.keys(range(len(section)))
    return {key: row for row, key in enumerate(every) if key in keys}


def _readable(images: ImageSet, rows: Mapping[str, Mapping[str, int]], folder: Path) -> ImageSet:
    """Unpack the images of parquet rows that are wanted."""
    from dataclasses import replace

    listing = images.listing
    if listing is None or listing.image_column is None:
        return images
    wanted = {split.name: np.zeros(len(split), bool) for split in listing.splits}
    for split, of_split in rows.items():
        wanted[split][list(of_split.values())] = True
    listing = spool(listing, folder, wanted)
    named = {split.name: split for split in listing.splits}
    sections = tuple(replace(section, listing=named[section.split]) for section in images.sections)
    return replace(images, sections=sections, listing=listing)


def _picture(images: ImageSet, section: Section, row: int) -> Image.Image | None:
    if section.manifest is not None:
        return read_displayed(section.manifest, row, _CELL_PX)
    assert images.listing is not None
    assert section.listing is not None
    reader = SourceReader(images.listing.root)
    try:
        data = reader.prepare(section.listing.image(row), PixelOptions(max_pixels=MOST_PIXELS)).data
        return displayed(Image.open(io.BytesIO(data)))
    except (BadImageError, ComaError, OSError):
        return None
    finally:
        reader.close()
