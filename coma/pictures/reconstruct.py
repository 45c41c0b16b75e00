"""Pictures of reconstructions: original, each view, and the image completed from each view, side by side.

Visible pixels are kept, hidden ones predicted. The network predicts each patch up to its mean and contrast,
which `MaskedAutoencoder.reconstruct` takes from the true patch, as is usual: the picture shows predicted structure.

Legend: B images, K views, U mask units.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from coma.errors import DivergedError
from coma.pictures.columns import (
    HIDDEN_GREY,
    TILE_PX,
    Column,
    check_picture_name,
    enlarge,
    hidden_pixels,
    lay_out,
    save_picture,
)
from coma.pictures.display import RGB, Display
from coma.pictures.images import images_to_show
from coma.pictures.options import ReconstructOptions
from coma.runs.names import RECONSTRUCTION_NAME
from coma.runs.read import load_autoencoder, naming_the_weights, run_of

if TYPE_CHECKING:
    from coma.model.autoencoder import MaskedAutoencoder


def columns_of(autoencoder: MaskedAutoencoder, images: Tensor, units: Tensor, display: Display = RGB) -> list[Column]:
    """Return the columns: the original, then each view beside its reconstruction.

    Tiles are enlarged before units are greyed, so that the edges of hidden units stay sharp.

    Args:
        autoencoder: of K views, or of one for MAE.
        images: [B, C, H, W], normalised.
        units: [B, U] int64, as the stream gives them.
        display: how they are shown.

    Raises:
        DivergedError: reconstructions are not finite.
    """
    reconstructions = autoencoder.reconstruct(images, units)  # [B, K, C, H, W]
    if not bool(reconstructions.isfinite().all()):
        raise DivergedError("the reconstructions of these images are not finite")
    scale = max(1, -(-TILE_PX // max(images.shape[-2:])))
    unit_px = scale * int(autoencoder.stream_options()["unit_size"])
    original = enlarge(display.shown(images), scale)
    visible, _ = autoencoder.split_units(units)
    columns = [Column(display.original, original)]
    for k, view in enumerate(visible):
        hidden = hidden_pixels(view.cpu(), unit_px, *original.shape[1:3])[..., None]
        predicted = enlarge(display.shown(reconstructions[:, k]), scale)
        titles = (f"view {k + 1}", f"painted from {k + 1}") if len(visible) > 1 else ("view", "painted")
        columns.append(Column(titles[0], np.where(hidden, np.uint8(HIDDEN_GREY), original)))
        # The original stands where the view sees: enlarging smears predicted pixels over the edges of units.
        columns.append(Column(titles[1], np.where(hidden, predicted, original)))
    return columns


def picture(autoencoder: MaskedAutoencoder, images: Tensor, units: Tensor, display: Display = RGB) -> Image.Image:
    """Draw a row for each image: the original, then each view (hidden units grey) beside its reconstruction.

    The network is in evaluation mode meanwhile, and no gradient is kept; the arguments are those of `columns_of`.
    """
    was_training = autoencoder.training
    autoencoder.eval()
    try:
        return lay_out(columns_of(autoencoder, images, units, display))
    finally:
        autoencoder.train(was_training)


def draw(options: ReconstructOptions, device: str) -> Path:
    """Draw what `coma reconstruct` draws, given its options; see `reconstruct_run`."""
    return reconstruct_run(
        options.run,
        options.images or [],
        out=options.out,
        count=options.count,
        seed=options.seed,
        device=device,
        show_channels=options.show_channels,
    )


def reconstruct_run(
    run_or_checkpoint: Path | str,
    sources: Sequence[Path | str] = (),
    *,
    out: Path | str | None = None,
    count: int = 8,
    seed: int = 0,
    device: str = "cpu",
    show_channels: str | None = None,
) -> Path:
    """Reconstruct images with a run's newest checkpoint, or the one named, and write the picture.

    Args:
        run_or_checkpoint: run folder, or one of its checkpoints.
        sources: image files, folders of images, or one sharded data set; none: the data of the run, its split
            `val` if there is one.
        out: the PNG to write; None: RUN/reconstruction.png.
        count: number of images, at most.
        seed: random seed of the masks.
        device: "cpu" or "cuda".
        show_channels: channels that are shown as red, green and blue, "4,3,2", of images that are not RGB.

    Returns:
        the picture's path.

    Raises:
        DataError: no such run, checkpoint, data or image.
        DivergedError: weights or reconstructions are not finite.
        UsageError: `out` is no name of a picture, `count` is not positive, or there are no such channels.
    """
    run, checkpoint = run_of(run_or_checkpoint)
    out = check_picture_name(run / RECONSTRUCTION_NAME if out is None else out)
    autoencoder = load_autoencoder(checkpoint, device)
    images, units, display = images_to_show(
        run, autoencoder, sources, count=count, seed=seed, device=device, show_channels=show_channels
    )
    with naming_the_weights(checkpoint):
        drawn = picture(autoencoder, images, units, display)
    save_picture(drawn, out)
    return out
