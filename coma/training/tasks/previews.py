"""Pictures of what the network paints, at a few moments of a run."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coma.pictures.reconstruct import picture
from coma.pipeline import Stream
from coma.shards.files import write_atomically
from coma.shards.manifest import Manifest

if TYPE_CHECKING:
    from coma.model.autoencoder import MaskedAutoencoder

PREVIEWS_NAME = "previews"
IMAGES = 4


def preview_steps(steps: int) -> frozenset[int]:
    """Return the steps after which to paint: none, a 16th, an 8th, a quarter, half and all of them."""
    return frozenset({0, *(steps // share for share in (16, 8, 4, 2, 1))})


def preview_path(run: Path, step: int) -> Path:
    """Return where the picture of a step is."""
    return run / PREVIEWS_NAME / f"step-{step:06}.png"


class Previewer:
    """Paints the data's first images, always the same, in float32 and on the side: training never notices.

    Args:
        build: makes the network.
        stream_options: what the model wants of a stream.
        decoding: arguments for the stream: workers, where to decode.
    """

    def __init__(
        self,
        run: Path,
        build: Callable[[], MaskedAutoencoder],
        data: Manifest,
        stream_options: dict[str, Any],
        device: torch.device,
        decoding: dict[str, Any],
    ) -> None:
        """Read the images."""
        self._run, self._build, self._device = run, build, device
        with Stream(
            data, batch_size=IMAGES, training=False, seed=0, device=device, **stream_options, **decoding
        ) as stream:
            batch = next(iter(stream))
        self._images, self._units = batch.images.clone(), batch.units.clone()

    def paint(self, weights: dict[str, Tensor], step: int) -> Path:
        """Write the picture of the network with these weights, and return its path."""
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            model = self._build()
            model.load_state_dict(weights)
            image = picture(model.to(self._device).eval(), self._images, self._units)
        path = preview_path(self._run, step)
        path.parent.mkdir(exist_ok=True)
        data = io.BytesIO()
        image.save(data, "PNG")
        write_atomically(path, data.getvalue())
        return path
