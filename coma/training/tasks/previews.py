"""Previews during pre-training: pictures of the network's reconstructions."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from coma.errors import DivergedError
from coma.pictures.display import display_of
from coma.pictures.reconstruct import picture
from coma.pipeline import Stream
from coma.runs.names import preview_path
from coma.shards.files import write_atomically
from coma.shards.manifest import Manifest, Mixture
from coma.training.tasks.task import network_with

if TYPE_CHECKING:
    from coma.model.autoencoder import MaskedAutoencoder

logger = logging.getLogger(__name__)

IMAGES = 4


def preview_steps(steps: int) -> frozenset[int]:
    """Return the steps after which to draw: 0, then a 16th, an 8th, a quarter, half and all of `steps`."""
    return frozenset({0, *(steps // share for share in (16, 8, 4, 2, 1))})


def _spread(data: Manifest) -> Manifest:
    """Return the first images of a mixture's data sets, as many of each; one data set is left as it is."""
    if not isinstance(data, Mixture):
        return data
    each = max(1, IMAGES // len(data.members))
    firsts = zip(data.first_samples, data.members, strict=True)
    rows = [row for first, member in firsts for row in range(first, first + min(each, len(member)))]
    return data.select(np.array(rows[:IMAGES]))


class ReconstructionPreviewer:
    """Draws reconstructions of the first images of the data, in float32 and without effect on training.

    `stream_options` are the arguments of the stream that the model asks for, `decoding` those on decoding.
    """

    def __init__(
        self,
        run: Path,
        build: Callable[[], MaskedAutoencoder],
        data: Manifest,
        stream_options: dict[str, Any],
        device: torch.device,
        decoding: dict[str, Any],
        show_channels: str | None = None,
    ) -> None:
        self._run, self._build, self._device = run, build, device
        with Stream(
            _spread(data), batch_size=IMAGES, training=False, seed=0, device=device, **stream_options, **decoding
        ) as stream:
            batch = next(iter(stream))
        self._display = display_of(stream_options.get("preprocessing"), data.pixels, show_channels)
        self._images, self._units = batch.images.clone(), batch.units.clone()

    def preview(self, weights: dict[str, Tensor], step: int) -> Path | None:
        """Write the picture of the network with these weights; return its path, or None with a warning."""
        path = preview_path(self._run, step)
        try:
            with network_with(self._build, weights, self._device) as model:
                image = picture(model, self._images, self._units, self._display)
            path.parent.mkdir(exist_ok=True)
            data = io.BytesIO()
            image.save(data, "PNG", compress_level=4)  # as small as 6 makes it, in half the time
            write_atomically(path, data.getvalue())
        except (DivergedError, OSError) as error:  # training is worth more than its pictures
            logger.warning("step %d: no preview: %s", step, error)
            return None
        return path
