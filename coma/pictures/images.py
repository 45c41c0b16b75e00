"""Images to make pictures of: from files, folders or shards to normalised tensors, and back to pixels.

Legend: B images, U mask units.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from coma.errors import DataError, UsageError
from coma.pipeline.views import partition_units
from coma.runs.read import read_config
from coma.shards.files import folder_at
from coma.shards.manifest import INFO_NAME, MANIFEST_NAME

if TYPE_CHECKING:
    from coma.model.autoencoder import MaskedAutoencoder

Pixels = NDArray[np.uint8]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


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
    """Take images from `sources`, as `coma.pictures.reconstruct.reconstruct_run` describes them.

    Returns:
        images [B, 3, H, W], normalised, and their mask units in a random order, [B, U] int64.

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


def _from_shards(data: Path, options: dict[str, Any], count: int, seed: int, device: str) -> tuple[Tensor, Tensor]:
    from coma.pipeline import Stream

    split = "val" if (data / "val" / "manifest.parquet").is_file() else "train"
    with Stream(data, split=split, batch_size=count, seed=seed, device=device, training=False, **options) as stream:
        batch = next(stream)
        return batch.images.clone(), batch.units.clone()


def load_images(paths: Sequence[Path], image_size: int | tuple[int, int], *, limit: int) -> Tensor:
    """Read image files, and images spread over folders, as evaluation sees them.

    The shorter side is resized to 256/224 of the image size and the centre is cut out.

    Returns:
        [B, 3, H, W], normalised, of at most `limit` images.

    Raises:
        DataError: a path is missing, holds no image, or cannot be decoded.
    """
    files = [file for path in paths for file in _image_files(path, limit)][:limit]
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    return from_pixels(np.stack([_cropped(file, size) for file in files]))


def _image_files(path: Path, limit: int) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} does not exist: name image files, a folder of images or a sharded data set")
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not files:
        raise DataError(f"{path} holds no image files ({', '.join(IMAGE_SUFFIXES)})")
    return files[:: max(1, len(files) // limit)]  # spread over the classes that the folders are


def _cropped(file: Path, size: tuple[int, int]) -> Pixels:
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} cannot be read as an image: {error}") from error
    height, width = size
    scale = max(height / image.height, width / image.width) * 256 / 224
    image = image.resize(
        (max(width, round(image.width * scale)), max(height, round(image.height * scale))), Image.Resampling.BILINEAR
    )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


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
