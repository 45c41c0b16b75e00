"""Pre-training as a task: an autoencoder that paints what its views do not see."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coma.export.folder import read_export
from coma.pipeline import Batch
from coma.runs.read import build_model, training_stream
from coma.shards.manifest import Manifest
from coma.training.config.options import PretrainConfig
from coma.training.tasks import init
from coma.training.tasks.previews import Previewer, preview_steps
from coma.training.tasks.scorer import Evaluator
from coma.training.tasks.task import Task, parameter_count

if TYPE_CHECKING:
    from coma.model.autoencoder import MaskedAutoencoder


class Pretraining(Task):
    """What `coma pretrain` trains.

    Args:
        config: the run's.
        manifest: what it trains on.

    Raises:
        UsageError, DataError: no such network, or --init does not fit it.
    """

    model: MaskedAutoencoder

    def __init__(self, config: PretrainConfig, manifest: Manifest) -> None:
        """Make the network."""
        self._config, self._manifest = config, manifest
        export = None if config.init is None else read_export(config.init)
        if export:
            init.check(export, config)
        self.model = self.build()
        if export:
            init.take_up(self.model, export, config)
            self.source_digest = export.digest()

    def build(self) -> MaskedAutoencoder:
        """Make the autoencoder with other weights."""
        return build_model(self._config.to_json())

    def stream_options(self, samples: int) -> dict[str, Any]:
        """Return what the autoencoder wants of a stream; its crops may grow."""
        return training_stream(self.model, self._config.to_json(), samples)

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return images [B, 3, H, W] and their mask units [B, U]."""
        return batch.images, batch.units

    def scorer(self, device: torch.device, decoding: dict[str, Any]) -> Evaluator | None:
        """Return what scores frozen features."""
        if self._config.evaluate_every is None:
            return None
        return Evaluator(self.build, self._manifest, device, decoding)

    def painter(self, run: Path, device: torch.device, decoding: dict[str, Any]) -> Previewer:
        """Return what paints previews."""
        return Previewer(run, self.build, self._manifest, self.model.stream_options(), device, decoding)

    def paints_after(self, steps: int) -> frozenset[int]:
        """Return a few steps, the earlier the denser."""
        return preview_steps(steps)

    def facts(self) -> dict[str, Any]:
        """Return the size of the network, and the views that it encodes."""
        visible, _ = self.model.split_units(torch.arange(self.model.units)[None])
        return {
            "parameters": parameter_count(self.model),
            "units": self.model.units,
            "view_sizes": [view.shape[1] for view in visible],
        }

    def opening(self) -> list[tuple[str, str]]:
        """Return the network and its views."""
        config, facts = self._config, self.facts()
        sizes = facts["view_sizes"]
        views = "1 view" if len(sizes) == 1 else f"{len(sizes)} views"
        start = config.start_size or config.image_size
        size = f"{start} to {config.image_size}" if start < config.image_size else config.image_size
        return [
            (
                "model",
                f"{config.model}, {config.method}: {views} of {' + '.join(map(str, sizes))} of {facts['units']} "
                f"units of {self.model.encoder.unit_size} px, images of {size} px; "
                f"{facts['parameters'] / 1e6:.1f} M parameters",
            ),
            *([("start", f"from the weights in {config.init}")] if config.init else []),
        ]
