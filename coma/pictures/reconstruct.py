"""A picture of what the network paints: original, each view, each reconstruction, side by side.

Visible pixels are kept, hidden ones painted. The network predicts each patch up to its mean and contrast,
which `reconstruct` takes from the true patch, as everybody does: the picture shows predicted structure.

Legend: B images, K views, U mask units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from coma.errors import DataError, UsageError
from coma.pipeline.views import partition_units
from coma.runs.names import RECONSTRUCTION_NAME
from coma.runs.read import load_autoencoder, read_config, run_of
from coma.shards.files import folder_at
from coma.shards.manifest import INFO_NAME, MANIFEST_NAME

if TYPE_CHECKING:
    from coma.model.coma import MaskedAutoencoder

Pixels = NDArray[np.uint8]

TILE_PX = 176  # a tile's longer side is at least this
HIDDEN_GREY = 128
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_GAP_PX, _TITLE_PX = 6, 16
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


@dataclass(frozen=True, eq=False)
class Column:
    """One column of the picture: its title and a tile [B, H, W, 3] an image."""

    title: str
    tiles: Pixels


def to_pixels(images: Tensor) -> Pixels:
    """Undo the normalisation: [B, 3, H, W] float → [B, H, W, 3] uint8, clipped to what a screen can show."""
    from coma.pipeline import MEAN, STD

    mean = torch.tensor(MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(3, 1, 1)
    shown = ((images.float() * std + mean) * 255).round().clamp(0, 255)
    return shown.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def from_pixels(pixels: Pixels) -> Tensor:
    """Normalise [B, H, W, 3] uint8 → [B, 3, H, W] float32, as the stream does."""
    from coma.pipeline import MEAN, STD

    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def columns_of(autoencoder: MaskedAutoencoder, images: Tensor, units: Tensor) -> list[Column]:
    """Return the columns: the original, then each view beside what is painted from it.

    images [B, 3, H, W] normalised, units [B, U] int64, as the stream gives them.
    Tiles are enlarged before units are greyed, so that the edges of hidden units stay sharp.
    """
    painted = autoencoder.reconstruct(images, units)  # [B, K, 3, H, W]
    scale = max(1, -(-TILE_PX // max(images.shape[-2:])))
    unit_px = scale * int(autoencoder.stream_options()["unit_size"])
    original = enlarge(to_pixels(images), scale)
    views = autoencoder.seen_units(units)
    columns = [Column("original", original)]
    for k, seen in enumerate(views):
        hidden = hidden_pixels(seen.cpu(), unit_px, *original.shape[1:3])[..., None]
        pixels = enlarge(to_pixels(painted[:, k]), scale)
        view, painting = (f"view {k + 1}", f"painted from {k + 1}") if len(views) > 1 else ("view", "painted")
        columns.append(Column(view, np.where(hidden, np.uint8(HIDDEN_GREY), original)))
        # Where the view sees, the original stands: enlarging smears painted pixels over the edges of units.
        columns.append(Column(painting, np.where(hidden, pixels, original)))
    return columns


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
    return np.stack(
        [np.asarray(Image.fromarray(p).resize((width, height), Image.Resampling.BICUBIC)) for p in pixels]
    )


def lay_out(columns: Sequence[Column]) -> Image.Image:
    """Set the columns side by side on white, a row an image, titles on top."""
    count, height, width, _ = columns[0].tiles.shape
    font = ImageFont.load_default(_TITLE_PX)
    top = 2 * _TITLE_PX
    page = Image.new(
        "RGB",
        (len(columns) * (width + _GAP_PX) + _GAP_PX, top + count * (height + _GAP_PX)),
        _PAPER,
    )
    draw = ImageDraw.Draw(page)
    for c, column in enumerate(columns):
        left = _GAP_PX + c * (width + _GAP_PX)
        draw.text((left + width / 2, top / 2), column.title, _INK, font, anchor="mm")
        for row, tile in enumerate(column.tiles):
            page.paste(Image.fromarray(tile), (left, top + row * (height + _GAP_PX)))
    return page


def picture(autoencoder: MaskedAutoencoder, images: Tensor, units: Tensor) -> Image.Image:
    """Paint images [B, 3, H, W] (normalised) from each view of units [B, U]: a row an image.

    Columns: the original, then each view (hidden units grey) beside the painting made from it; K views, or
    one for MAE. The network is in evaluation mode meanwhile and no gradient is kept.
    """
    was_training = autoencoder.training
    autoencoder.eval()
    try:
        return lay_out(columns_of(autoencoder, images, units))
    finally:
        autoencoder.train(was_training)


# -- a run's picture


def reconstruct_run(
    run_or_checkpoint: Path,
    sources: Sequence[Path] = (),
    *,
    out: Path | None = None,
    count: int = 8,
    seed: int = 0,
    device: str = "cpu",
) -> Path:
    """Paint images with a run's newest checkpoint (or the one named) and write the picture.

    Args:
        run_or_checkpoint: run folder, or one of its checkpoints.
        sources: image files, folders of images, or one sharded data set; none: the data of the run, its split
            `val` if there is one.
        out: the PNG; None: RUN/reconstruction.png.
        count: images, at most.
        seed: of the masks.
        device: "cpu" or "cuda".

    Raises:
        DataError: no such run, checkpoint, data or image.
        UsageError: `out` is no name of a picture, or `count` is not positive.
    """
    run, checkpoint = run_of(run_or_checkpoint)
    out = check_picture(run / RECONSTRUCTION_NAME if out is None else out)
    autoencoder = load_autoencoder(checkpoint, device)
    images, units = images_to_show(run, autoencoder, sources, count=count, seed=seed, device=device)
    out.parent.mkdir(parents=True, exist_ok=True)
    picture(autoencoder, images, units).save(out)
    return out


def check_picture(out: Path) -> Path:
    """Return `out` if a picture can be written there; UsageError if its name is none of a picture."""
    if out.suffix.lower() not in IMAGE_SUFFIXES or out.is_dir():
        raise UsageError(f"{out} is no name for a picture: end it in .png")
    return out


def images_to_show(
    run: Path,
    autoencoder: MaskedAutoencoder,
    sources: Sequence[Path],
    *,
    count: int,
    seed: int = 0,
    image_size: int | None = None,
    device: str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Images [B, 3, H, W] (normalised) and units [B, U] from `sources` as in `reconstruct_run`.

    Raises:
        DataError: no such data or image.
        UsageError: `count` is not positive.
    """
    if count < 1:
        raise UsageError(f"{count} images to show: give 1 or more")
    sources = list(sources) or [folder_at(read_config(run)["resolved"]["data"])]
    options = autoencoder.stream_options()
    if image_size is not None:
        autoencoder.encoder.unit_grid(image_size, image_size)
        options["image_size"] = image_size
    if len(sources) == 1 and any((sources[0] / name).is_file() for name in (INFO_NAME, MANIFEST_NAME)):
        return _from_shards(sources[0], options, count, seed, device)
    images = load_images(sources, options["image_size"], limit=count).to(device)
    height, width = images.shape[-2:]
    in_all = (height // options["unit_size"]) * (width // options["unit_size"])
    samples = torch.arange(len(images), device=device)
    return images, partition_units(samples, torch.zeros_like(samples), seed=seed, units=in_all)


def _from_shards(
    data: Path, options: dict[str, Any], count: int, seed: int, device: str
) -> tuple[Tensor, Tensor]:
    from coma.pipeline import Stream

    split = "val" if (data / "val" / "manifest.parquet").is_file() else "train"
    with Stream(
        data, split=split, batch_size=count, seed=seed, device=device, training=False, **options
    ) as stream:
        batch = next(stream)
        return batch.images.clone(), batch.units.clone()


# -- images from files


def load_images(paths: Sequence[Path], image_size: int | tuple[int, int], *, limit: int) -> Tensor:
    """Read image files, or the first of folders by name, as evaluation sees them: [B, 3, H, W] normalised.

    The shorter side is resized to 256/224 of the image size and the centre cut out. At most `limit` images.
    DataError for a path that is missing, holds no image, or cannot be decoded.
    """
    files = [file for path in paths for file in _image_files(path, limit)][:limit]
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    return from_pixels(np.stack([_cropped(file, size) for file in files]))


def _image_files(path: Path, limit: int) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} does not exist: name image files, a folder of images or a sharded data set")
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not found:
        raise DataError(f"{path} holds no image files ({', '.join(IMAGE_SUFFIXES)})")
    return found[:: max(1, len(found) // limit)]  # spread over the classes that the folders are


def _cropped(file: Path, size: tuple[int, int]) -> Pixels:
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} cannot be read as an image: {error}") from error
    height, width = size
    scale = max(height / image.height, width / image.width) * 256 / 224
    image = image.resize(
        (max(width, round(image.width * scale)), max(height, round(image.height * scale))),
        Image.Resampling.BILINEAR,
    )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))
