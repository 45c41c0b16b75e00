"""Contact sheet of a data set, and its images as they are displayed."""

import io
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from coma.errors import DataError, UsageError
from coma.shards.describe.masks import class_colours, overlaid, read_mask
from coma.shards.files import store_errors_as_oserror, write_atomically
from coma.shards.images.arrays import array_facts, read_window
from coma.shards.images.false_colour import legend, to_rgb
from coma.shards.images.formats import BadImageError
from coma.shards.manifest import INFO_NAME, Manifest, read_info, read_manifest
from coma.shards.manifest.mask_coding import IGNORED
from coma.shards.manifest.pixel_coding import PixelCoding

_MARGIN_PX = 16
_GAP_PX = 8
_CAPTION_PX = 18  # height of the line below a cell
_FONT_PX = 12
_SWATCH_PX = 12
_ENTRY_PX = 136  # width of a class's entry in the legend of masks
_MOST_ENTRIES = 40
_PAGE, _MAT, _BORDER, _INK = "#ffffff", "#f4f4f5", "#d4d4d8", "#52525b"


def contact_sheet(
    data: Path,
    split: str = "train",
    images: int = 64,
    seed: int = 0,
    cell_px: int = 128,
    channels: Sequence[int] | None = None,
) -> Image.Image:
    """Draw a random choice of a split's images in rows of equal length, each image whole in a square cell.

    As many classes as there is room for are shown, one image of each before a second of any, in the order of the
    classes and with their names. The cell of an image that does not decode says so. Masks are colours over the images,
    with a legend below them. Samples that are not 8-bit RGB are shown in false colour, of the `channels` that
    `false_colour.to_rgb` takes, which the last line names.
    """
    manifest = read_manifest(data, split)
    rows = balanced_choice(manifest, images, seed)
    columns, lines = _grid(len(rows))
    rows = rows[: columns * lines]
    captions = _captions(manifest, rows)
    with ThreadPoolExecutor() as pool:
        pictures = pool.map(lambda row: _read_with_mask(manifest, int(row), cell_px, channels), rows)
        across_px = cell_px + _GAP_PX
        down_px = across_px + (_CAPTION_PX if captions else 0)
        size = (columns * across_px - _GAP_PX, lines * down_px - _GAP_PX)
        note_px = 0 if manifest.pixels is None else _CAPTION_PX
        sheet = Image.new("RGB", (size[0] + 2 * _MARGIN_PX, size[1] + 2 * _MARGIN_PX + note_px), _PAGE)
        draw = ImageDraw.Draw(sheet)
        pixels = np.zeros(IGNORED + 1, np.int64)
        for place, (picture, of_classes) in enumerate(pictures):
            pixels += of_classes
            left = _MARGIN_PX + place % columns * across_px
            top = _MARGIN_PX + place // columns * down_px
            draw.rectangle((left, top, left + cell_px - 1, top + cell_px - 1), _MAT, _BORDER)
            if picture is None:
                centred(draw, "does not decode", left, top + cell_px // 2 - _FONT_PX // 2, cell_px)
            else:
                whole = ImageOps.contain(picture, (cell_px - 2, cell_px - 2), Image.Resampling.LANCZOS)
                corner = (left + (cell_px - whole.width) // 2, top + (cell_px - whole.height) // 2)
                sheet.paste(whole, corner)
            if captions:
                centred(draw, captions[place], left, top + cell_px + 3, cell_px)
    if manifest.pixels is not None:
        note = f"{legend(manifest.pixels, channels)}, each from its 2nd to its 98th percentile"
        _line(draw, note, _MARGIN_PX, sheet.height - _MARGIN_PX - _FONT_PX, size[0])
    return _with_legend(sheet, manifest, pixels) if manifest.has_masks else sheet


def write_contact_sheet(
    data: Path, path: Path | str, split: str = "train", seed: int = 0, channels: Sequence[int] | None = None
) -> None:
    """Write `contact_sheet` as a PNG. Raises UsageError if `path` cannot be written, or a channel is not there."""
    path = Path(path)
    png = io.BytesIO()
    contact_sheet(data, split, seed=seed, channels=channels).save(png, "PNG")
    try:
        write_atomically(path, png.getvalue())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _read_with_mask(
    manifest: Manifest, row: int, px: int, channels: Sequence[int] | None
) -> tuple[Image.Image | None, npt.NDArray[np.int64]]:
    """Read a sample with its mask over it, and the number of pixels of each class."""
    picture = read_displayed(manifest, row, px, channels)
    ids = read_mask(manifest, row)
    if ids is None:
        return picture, np.zeros(IGNORED + 1, np.int64)
    shown = None if picture is None else overlaid(picture, ids)
    return shown, np.bincount(ids.reshape(-1), minlength=IGNORED + 1)


def _with_legend(sheet: Image.Image, manifest: Manifest, pixels: npt.NDArray[np.int64]) -> Image.Image:
    """Add the colours of the classes that are on a sheet, largest first."""
    names, colours = manifest.mask_classes, class_colours(IGNORED)
    shown = [number for number in np.argsort(-pixels[:IGNORED], kind="stable").tolist() if pixels[number]]
    more = len(shown) - _MOST_ENTRIES
    columns = max(1, (sheet.width - 2 * _MARGIN_PX) // _ENTRY_PX)
    entries = min(len(shown), _MOST_ENTRIES) + (more > 0)
    lines = -(-entries // columns)
    whole = Image.new("RGB", (sheet.width, sheet.height + lines * _CAPTION_PX + (_MARGIN_PX if lines else 0)), _PAGE)
    whole.paste(sheet)
    draw = ImageDraw.Draw(whole)
    for place in range(entries):
        left = _MARGIN_PX + place % columns * _ENTRY_PX
        top = sheet.height + place // columns * _CAPTION_PX
        if place == _MOST_ENTRIES:
            _line(draw, f"and {more} more", left, top, _ENTRY_PX)
            continue
        number = shown[place]
        draw.rectangle(
            (left, top + 1, left + _SWATCH_PX - 1, top + _SWATCH_PX), tuple(colours[number].tolist()), _BORDER
        )
        text = names[number] if number < len(names) else str(number)
        _line(draw, text, left + _SWATCH_PX + 4, top, _ENTRY_PX - _SWATCH_PX - 8)
    return whole


def read_displayed(manifest: Manifest, row: int, px: int, channels: Sequence[int] | None = None) -> Image.Image | None:
    """Read a sample as a person sees it, upright and in RGB; return None if it does not decode.

    A JPEG may be decoded at a reduced size, with sides of at least `px` pixels. A sample that is not 8-bit RGB is
    shown in false colour, of the `channels` that `false_colour.to_rgb` takes. Raises DataError if its shard cannot be
    read, UsageError for channels that are not there.
    """
    path = manifest.shard_path(int(manifest.shard_id[row]))
    try:
        with store_errors_as_oserror(path), path.open("rb") as file:
            file.seek(int(manifest.offset[row]))
            data = file.read(int(manifest.size[row]))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if manifest.pixels is not None:
        return _in_false_colour(data, manifest.pixels, channels)
    try:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (px, px))
        return displayed(image)
    except Exception:
        return None


def _in_false_colour(data: bytes, pixels: PixelCoding, channels: Sequence[int] | None) -> Image.Image | None:
    try:
        facts = array_facts(data)
        array = read_window(data, facts.format, 0, 0, facts.height, facts.width)
    except BadImageError:
        return None
    return None if array.shape[2] != pixels.channels else Image.fromarray(to_rgb(array, pixels, channels))


def displayed(image: Image.Image) -> Image.Image:
    """Return an opened image as a person sees it: upright, in RGB, of 16 bits the upper eight."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        upright = Image.fromarray((np.asarray(upright).astype(np.uint16) >> 8).astype(np.uint8))
    return upright.convert("RGB")


def balanced_choice(manifest: Manifest, images: int, seed: int) -> npt.NDArray[np.int64]:
    """Choose up to `images` rows at random, one of each class before a second of any, and sort them by class."""
    generator = np.random.default_rng(seed)
    if manifest.label is None:
        return np.sort(generator.choice(len(manifest), min(images, len(manifest)), replace=False))
    classes = generator.permutation(np.unique(manifest.label))[:images]
    rows = generator.permutation(np.flatnonzero(np.isin(manifest.label, classes)))
    labels = manifest.label[rows]
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], labels[by_class])
    rank = np.empty(len(rows), np.int64)  # of each image within its class
    rank[by_class] = np.arange(len(rows)) - starts
    chosen = rows[np.argsort(rank, kind="stable")[:images]]
    return chosen[np.lexsort((chosen, manifest.label[chosen]))]


def _grid(images: int) -> tuple[int, int]:
    """Return columns and lines of a full grid that leaves out as few images as possible."""
    least = int(np.ceil(np.sqrt(images)))
    columns = max(range(least, 2 * least + 1), key=lambda columns: (images // columns * columns, -columns))
    return columns, images // columns


def _captions(manifest: Manifest, rows: npt.NDArray[np.int64]) -> list[str] | None:
    if manifest.label is None:
        return None
    names = class_captions(manifest)
    return [names[label] if names is not None else str(label) for label in manifest.label[rows]]


def class_captions(manifest: Manifest) -> list[str] | None:
    """Return captions for the classes: the first English word of each where the data set has it, else the name."""
    words = None
    if (manifest.folder.parent / INFO_NAME).is_file():
        about = read_info(manifest.folder.parent).get("coma")
        words = about.get("class_words") if isinstance(about, dict) else None
    if isinstance(words, list) and len(words) == len(manifest.class_names or ()):
        return [str(word).split(",")[0].strip() for word in words]
    return None if manifest.class_names is None else list(manifest.class_names)


def centred(draw: ImageDraw.ImageDraw, text: str, left: int, top: int, width: int) -> None:
    """Draw a line of text in the middle of `width` pixels."""
    _line(draw, text, left, top, width, centred=True)


def _line(draw: ImageDraw.ImageDraw, text: str, left: int, top: int, width: int, centred: bool = False) -> None:
    """Draw a line of text, cut to `width` pixels, in PIL's own font, the same everywhere and ASCII only."""
    font = ImageFont.load_default(_FONT_PX)
    letters = (each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))
    text = " ".join("".join(letters).encode("ascii", "replace").decode().split())
    shown = text
    while shown and font.getlength(shown) > width:
        text = text[:-1]
        shown = text.rstrip() + "..."
    draw.text((left + (width - font.getlength(shown)) / 2 if centred else left, top), shown, _INK, font)
