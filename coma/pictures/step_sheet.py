"""A page with the images of one training step: each original with its crop window, the crop, and each view."""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from coma.errors import UsageError
from coma.pictures.columns import hidden_pixels
from coma.pictures.display import Display, display_of
from coma.pictures.step import Row, StepContents
from coma.pipeline.arrays import make_decoder
from coma.pipeline.crops import Crops
from coma.pipeline.decode import DecodeError
from coma.pipeline.reader import SampleReader
from coma.pipeline.squares import turned
from coma.shards.describe.contact_sheet import read_displayed
from coma.shards.files import write_atomically
from coma.shards.manifest import Manifest

SHEET_IMAGES = 32
"""Number of images on a sheet, at most."""

_TILE_PX = 144  # rounded to a whole number of pixels for each mask unit
_GAP_PX, _LINE_PX, _GROUP_GAP_PX, _MARGIN_PX = 4, 18, 28, 24
_SHAPE = 1.0  # width over height that the page is laid out for
_PAGE, _MAT, _RULE = "#ffffff", "#f4f4f5", "#d4d4d8"
_INK, _SOFT, _MARK, _ALARM = "#27272a", "#71717a", "#0b6bcb", "#c2410c"
HIDDEN_GREY = 160
"""Grey of hidden units; lighter than in `coma.pictures.columns`, as this page has no reconstructions."""


def write_step_sheet(contents: StepContents, path: Path | str, show_channels: str | None = None) -> int:
    """Write the page as a PNG and return the number of images on it.

    Raises:
        UsageError: it cannot be written, or has no such channels to show.
    """
    path = Path(path)
    png = io.BytesIO()
    step_sheet(contents, show_channels).save(png, "PNG")
    try:
        write_atomically(path, png.getvalue())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; give another --sheet") from error
    return min(SHEET_IMAGES, len(contents.rows))


def step_sheet(contents: StepContents, show_channels: str | None = None) -> Image.Image:
    """Lay out the first images of a batch: original, crop as the network got it, each view."""
    rows = contents.rows[:SHEET_IMAGES]
    display = display_of(contents.preprocessing, contents.manifest.pixels, show_channels)
    grid = math.isqrt(contents.units)
    tile = grid * max(1, round(_TILE_PX / grid))
    titles = ["original", "crop", *(f"view {k}" for k in range(1, len(contents.view_sizes) + 1))]
    across = len(titles) * (tile + _GAP_PX) - _GAP_PX
    down = 2 * _LINE_PX + tile + _GAP_PX
    groups = _groups(len(rows), across + _GROUP_GAP_PX, down)
    top = _MARGIN_PX + 4 * _LINE_PX
    page = Image.new(
        "RGB",
        (
            2 * _MARGIN_PX + groups * (across + _GROUP_GAP_PX) - _GROUP_GAP_PX,
            top + math.ceil(len(rows) / groups) * down + _MARGIN_PX - _LINE_PX,
        ),
        _PAGE,
    )
    draw = ImageDraw.Draw(page)
    _head(draw, contents, len(rows), page.width - 2 * _MARGIN_PX, display)
    for group in range(groups):
        left = _MARGIN_PX + group * (across + _GROUP_GAP_PX)
        for column, title in enumerate(titles):
            at = left + column * (tile + _GAP_PX) + tile / 2
            draw.text((at, top - _LINE_PX / 2), title, _SOFT, _font(12), anchor="mm")
    for place, (row, image) in enumerate(zip(rows, network_images(contents, len(rows)), strict=True)):
        left = _MARGIN_PX + place % groups * (across + _GROUP_GAP_PX)
        upper = top + place // groups * down
        tiles = [_original(contents.manifest, row, tile, display)]
        if image is None:
            tiles += [_empty(tile)] * (len(titles) - 1)
        else:
            crop = Image.fromarray(display.shown(image[None])[0])
            tiles += view_tiles(crop, row.views, grid, tile)
        for column, shown in enumerate(tiles):
            page.paste(shown, (left + column * (tile + _GAP_PX), upper))
        _caption(draw, row, place, left, upper + tile + 3, across)
    return page


def network_images(contents: StepContents, count: int) -> Iterator[Tensor | None]:
    """The first `count` images of a batch as the network got them, through the stream's decoder, on the CPU.

    Yields:
        [C, image_size, image_size] float32, normalised; None for one that cannot be read any more.

    Raises:
        DataError: a shard is gone.
    """
    manifest, device = contents.manifest, torch.device("cpu")
    decoder = make_decoder(
        manifest.pixels,
        lambda: None,
        batch_size=1,
        device=device,
        decode_on_gpu=False,
        threads=1,
        depth=1,
        preprocessing=contents.preprocessing,
    )
    with closing(decoder), closing(SampleReader(manifest, 1)) as reader:
        for row in contents.rows[:count]:
            data = reader.read_one(row.shown.sample)
            crop, side = _crops(row), contents.image_size
            try:
                yield None if data is None else turned(decoder.decode_one(data, crop, side), crop)[0]
            except DecodeError:
                yield None


def _crops(row: Row) -> Crops:
    crop = row.crop
    return Crops(
        np.array([[crop.y, crop.x]], np.int32),
        np.array([[crop.height, crop.width]], np.int32),
        np.array([row.flipped], np.int32),
        np.array([row.turned // 90], np.int32),
    )


def _groups(images: int, across: int, down: int) -> int:
    """The number of images side by side that brings the page nearest to `_SHAPE`."""

    def distance(groups: int) -> float:
        return abs(math.log(groups * across / (math.ceil(images / groups) * down) / _SHAPE))

    return min(range(1, images + 1), key=distance)


def _head(draw: ImageDraw.ImageDraw, contents: StepContents, images: int, width: int, display: Display) -> None:
    words = [
        f"{images:,} of {len(contents.rows):,} images" if images < len(contents.rows) else f"{images:,} images",
        f"epoch {contents.epochs:.2f}",
        *([f"{contents.substituted:,} substituted"] if contents.substituted else []),
        {
            True: "the run recorded the same samples",
            False: "THE RUN RECORDED OTHER SAMPLES",
            None: "the run has no record of this step",
        }[contents.matches],
        *([display.legend] if display.legend else []),
    ]
    title = f"Step {contents.step:,} of {contents.steps:,}"
    _text(draw, f"{title}  -  {contents.run.resolve().name}", _MARGIN_PX, _MARGIN_PX - 4, width, _INK, 20)
    colour = _ALARM if contents.matches is False else _SOFT
    _text(draw, "  -  ".join(words), _MARGIN_PX, _MARGIN_PX + 24, width, colour, 13)


def _caption(draw: ImageDraw.ImageDraw, row: Row, place: int, left: int, top: int, width: int) -> None:
    crop, sample = row.crop, row.shown
    window = f"{crop.width}x{crop.height} at {crop.x},{crop.y}{', flipped' if row.flipped else ''}"
    if row.turned:
        window += f", turned {row.turned}°"
    right = draw.textlength(window, _font(12))
    draw.text((left + width - right, top), window, _SOFT, _font(12))
    words = [
        f"{place + 1}.",
        sample.key,
        sample.data_set,
        sample.class_text,
        PurePosixPath(sample.source).name,
    ]
    colour = _INK
    if row.substitute is not None:
        words[1:1], colour = [f"for {row.asked.key}:"], _ALARM
    _text(draw, "  ".join(filter(None, words)), left, top, int(width - right) - 12, colour, 12)


def _original(manifest: Manifest, row: Row, tile: int, display: Display) -> Image.Image:
    """Return the whole image in a square, faded outside the crop window."""
    whole = read_displayed(manifest, row.shown.sample, tile, display.channels)
    if whole is None:
        return _empty(tile)
    small = ImageOps.contain(whole, (tile, tile), Image.Resampling.LANCZOS)
    width, height = (int(of[row.shown.sample]) for of in (manifest.width, manifest.height))
    x_scale, y_scale, crop = small.width / width, small.height / height, row.crop
    box = (
        round(crop.x * x_scale),
        round(crop.y * y_scale),
        max(round((crop.x + crop.width) * x_scale), round(crop.x * x_scale) + 3),
        max(round((crop.y + crop.height) * y_scale), round(crop.y * y_scale) + 3),
    )
    faded = Image.blend(small, Image.new("RGB", small.size, _PAGE), 0.6)
    faded.paste(small.crop(box), box[:2])
    edge = (box[0], box[1], box[2] - 1, box[3] - 1)
    ImageDraw.Draw(faded).rectangle(edge, outline=_MARK, width=2)
    cell = Image.new("RGB", (tile, tile), _MAT)
    cell.paste(faded, ((tile - small.width) // 2, (tile - small.height) // 2))
    return cell


def view_tiles(crop: Image.Image, views: Sequence[Sequence[int]], grid: int, tile: int) -> list[Image.Image]:
    """Draw a crop, and what each view sees of it, as tiles of `tile` pixels.

    The crop is resized before units are greyed, so that their edges are sharp.

    Args:
        crop: a square image of `grid` x `grid` mask units.
        views: raster indices of the units that each view sees.
        grid: mask units of a side.
        tile: side of a tile in pixels, a multiple of `grid`.
    """
    crop = crop.resize((tile, tile), Image.Resampling.LANCZOS)
    pixels = np.asarray(crop)
    tiles = [crop]
    for seen in views:
        (hidden,) = hidden_pixels(torch.tensor([seen]), tile // grid, tile, tile)
        tiles.append(Image.fromarray(np.where(hidden[..., None], np.uint8(HIDDEN_GREY), pixels)))
    return tiles


def _empty(tile: int) -> Image.Image:
    cell = Image.new("RGB", (tile, tile), _MAT)
    draw = ImageDraw.Draw(cell)
    draw.rectangle((0, 0, tile - 1, tile - 1), outline=_RULE)
    draw.multiline_text((tile / 2, tile / 2), "cannot be\nread now", _SOFT, _font(12), "mm", align="center")
    return cell


def _font(px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(px)


def _text(draw: ImageDraw.ImageDraw, text: str, left: int, top: int, width: int, colour: str, px: int) -> None:
    """Write a line cut to `width` pixels; PIL's own font, the same on every machine, has ASCII only."""
    letters = (each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))
    text = "".join(letters).encode("ascii", "replace").decode()
    shown = text
    while shown and draw.textlength(shown, _font(px)) > width:
        text = text[:-1]
        shown = text.rstrip() + "..."
    draw.text((left, top), shown, colour, _font(px))
