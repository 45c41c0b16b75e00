"""Images to make pictures of: from files, folders or shards to normalised tensors, and back to pixels.

Legend: B images, U mask units.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from coma.errors import DataError, UsageError
from coma.pictures.display import RGB, Display, Pixels, display_of
from coma.pipeline.preprocessing import DEFAULT, Preprocessing
from coma.pipeline.views import partition_units
from coma.runs.read import run_data
from coma.shards.describe.contact_sheet import displayed
from coma.shards.files import folder_at, is_remote, is_there, without_credentials
from coma.shards.images.options import MOST_PIXELS
from coma.shards.images.prepare import BadImageError, PixelOptions, prepare_image
from coma.shards.manifest import INFO_NAME, MANIFEST_NAME
from coma.shards.sources.kinds import is_image_name

if TYPE_CHECKING:
    from coma.model.autoencoder import MaskedAutoencoder

logger = logging.getLogger(__name__)

_ANY_SIZE = PixelOptions(max_pixels=MOST_PIXELS)
_NAMED = 5  # files or kinds of files in a message


def images_to_show(
    run: Path,
    autoencoder: MaskedAutoencoder,
    sources: Sequence[Path | str],
    *,
    count: int,
    seed: int = 0,
    image_size: int | None = None,
    device: str = "cpu",
    show_channels: str | None = None,
) -> tuple[Tensor, Tensor, Display]:
    """Take images from `sources`, as `coma.pictures.reconstruct.reconstruct_run` describes them.

    Returns:
        images [B, C, H, W], normalised, their mask units in a random order, [B, U] int64, and how they are shown.

    Raises:
        DataError: no such data or image.
        UsageError: `count` is not positive, there are no such channels, or the images are not of the network's kind.
    """
    if count < 1:
        raise UsageError(f"{count} images to show: give 1 or more")
    places = [folder_at(source) for source in sources] or [run_data(run)]
    options = autoencoder.stream_options()
    if image_size is not None:
        autoencoder.encoder.unit_grid(image_size, image_size)
        options["image_size"] = image_size
    if len(places) == 1 and _is_data(places[0]):
        return _from_shards(places[0], options, count, seed, device, show_channels)
    wanted = autoencoder.preprocessing or DEFAULT
    if not wanted.takes_rgb:
        raise UsageError(
            f"{without_credentials(str(places[0]))} is no data set made by `coma shard`: files are shown as 8-bit RGB, "
            f"and {run} takes {wanted.kind}: shard them with --channels {wanted.channels}"
        )
    for place in places:
        if is_remote(place):
            raise UsageError(
                f"{without_credentials(str(place))} is no data set made by `coma shard`: images themselves are shown "
                "from folders of this machine only"
            )
    images = load_images(places, options["image_size"], limit=count, preprocessing=wanted).to(device)
    height, width = images.shape[-2:]
    in_all = (height // options["unit_size"]) * (width // options["unit_size"])
    samples = torch.arange(len(images), device=device)
    units = partition_units(samples, torch.zeros_like(samples), seed=seed, units=in_all)
    return images, units, display_of(wanted, None, show_channels)


def _is_data(place: Path) -> bool:
    try:
        return any(is_there(place / name) for name in (INFO_NAME, MANIFEST_NAME))
    except OSError as error:
        raise DataError(f"{without_credentials(str(place))} cannot be read: {error.strerror or error}") from None


def _from_shards(
    data: Path, options: dict[str, Any], count: int, seed: int, device: str, show_channels: str | None
) -> tuple[Tensor, Tensor, Display]:
    from coma.pipeline import Stream

    split = "val" if is_there(data / "val" / MANIFEST_NAME) else "train"
    with Stream(data, split=split, batch_size=count, seed=seed, device=device, training=False, **options) as stream:
        display = display_of(options.get("preprocessing"), stream.manifest.pixels, show_channels)
        batch = next(stream)
        return batch.images.clone(), batch.units.clone(), display


def load_images(
    paths: Sequence[Path | str],
    image_size: int | tuple[int, int],
    *,
    limit: int,
    preprocessing: Preprocessing = DEFAULT,
) -> Tensor:
    """Read image files, and images spread over folders, as evaluation sees them.

    The shorter side is resized to 256/224 of the image size and the centre is cut out. Files that are damaged or of
    another kind are passed over with a warning, and others take their place.

    Returns:
        [B, 3, H, W], normalised, of at most `limit` images.

    Raises:
        DataError: a path is missing or cannot be read, or no image is good.
    """
    files = [file for path in paths for file in _image_files(Path(path), limit)]
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    images: list[Pixels] = []
    bad: list[str] = []
    for file in files:
        if len(images) == limit:
            break
        try:
            images.append(_cropped(file, size))
        except (BadImageError, OSError, ValueError) as error:
            bad.append(f"{file}: {getattr(error, 'strerror', None) or error}")
    if not images:
        raise DataError(f"none of {len(bad)} image files can be shown: {_first(bad)}")
    if bad:
        logger.warning("passed over %d of the images: %s", len(bad), _first(bad))
    return from_pixels(np.stack(images), preprocessing)


def _first(texts: Sequence[str]) -> str:
    return "; ".join(texts[:_NAMED]) + (f"; and {len(texts) - _NAMED:,} more" if len(texts) > _NAMED else "")


def _image_files(path: Path, limit: int) -> list[Path]:
    """Return a file, or all images of a folder: first `limit` that are spread over the classes that its folders are."""
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise DataError(f"{path} does not exist: name image files, a folder of images or a sharded data set")
        next(path.iterdir(), None)  # or the reason why it cannot be read
    except OSError as error:
        raise DataError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    visible_files = [file for file in path.rglob("*") if not file.name.startswith(".") and file.is_file()]
    files = sorted(file for file in visible_files if is_image_name(file.name))
    if not files:
        raise DataError(f"{path} holds no image files among its {len(visible_files):,} files")
    others = Counter(file.suffix.lower() or "no extension" for file in visible_files if not is_image_name(file.name))
    if others:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(_NAMED))
        logger.info("%s: passed over %d files that are not images by their names (%s)", path, others.total(), kinds)
    spread = files[:: max(1, len(files) // limit)][:limit]
    return spread + sorted(set(files).difference(spread))


def _cropped(file: Path, size: tuple[int, int]) -> Pixels:
    """Read an image as a person sees it, resized and cropped to `size` (height, width)."""
    prepared = prepare_image(file.read_bytes(), _ANY_SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow's, on a large image
        image = displayed(Image.open(io.BytesIO(prepared.data)))
    height, width = size
    scale = max(height / image.height, width / image.width) * 256 / 224
    image = image.resize(
        (max(width, round(image.width * scale)), max(height, round(image.height * scale))), Image.Resampling.BILINEAR
    )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


def to_pixels(images: Tensor) -> Pixels:
    """Undo ImageNet's normalisation: [B, 3, H, W] float → [B, H, W, 3] uint8, clipped to what a screen can show."""
    return RGB.shown(images)


def from_pixels(pixels: Pixels, preprocessing: Preprocessing = DEFAULT) -> Tensor:
    """Normalise [B, H, W, 3] uint8 → [B, 3, H, W] float32, as the stream does."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (preprocessing.mean, preprocessing.std))
    return (images - mean) / std
