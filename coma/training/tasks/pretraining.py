"""Pre-training as a task: a masked autoencoder that predicts the hidden patches of each view."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coma.pictures.display import display_of
from coma.pipeline import Batch
from coma.pipeline.preprocessing import check_fits, of_data
from coma.runs.read import build_model, training_stream
from coma.shards.files import folder_at
from coma.shards.manifest import Manifest, Mixture, read_manifest
from coma.training.config.options import PretrainConfig
from coma.training.tasks.pretrained import read_backbone
from coma.training.tasks.previews import ReconstructionPreviewer, preview_steps
from coma.training.tasks.scorer import FeatureScorer
from coma.training.tasks.start_from import check_kind, check_same, load_init, recorded_start
from coma.training.tasks.task import Task, parameter_count

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from coma.model.autoencoder import MaskedAutoencoder


class Pretraining(Task):
    """What `coma pretrain` trains.

    Raises:
        UsageError, DataError: no such network, or --init or --evaluate-on does not fit it.
    """

    model: MaskedAutoencoder

    def __init__(self, config: PretrainConfig, manifest: Manifest) -> None:
        self._config, self._manifest = config, manifest
        self.preprocessing = of_data(
            manifest.pixels, mean=config.mean, std=config.std, clip_percentile=config.clip_percentile
        )
        display_of(self.preprocessing, manifest.pixels, config.show_channels)  # or the reason why not
        self._scored = None if config.evaluate_on is None else read_manifest(folder_at(config.evaluate_on))
        if self._scored is not None:
            check_fits(self.preprocessing, self._scored.pixels, "the network", self._scored.place)
        self._start = recorded_start(config)
        self.lacks_weights = self._start is not None
        source = None
        if config.init is not None and self._start is None:
            source = read_backbone(config.init)
            check_kind(source, config.model, "--init")
        self._args = self._start.backbone_args if self._start else source.backbone_args if source else None
        self.model = self.build()
        self.model.checkpoint_stages(config.checkpointed_stages)
        self.model.keeps_image_losses = isinstance(manifest, Mixture)
        if source:
            self._start = load_init(self.model, source, config)
        self.init_digest = self._start.digest if self._start else None

    def build(self) -> MaskedAutoencoder:
        """Make another autoencoder with new weights."""
        pixels = self.preprocessing.to_json()
        return build_model({**self._config.to_json(), "pixels": pixels, "backbone_args": self._args})

    def image_losses(self) -> Tensor | None:
        """Return the loss of each image [B] of the last forward pass on a mixture."""
        return self.model.image_losses

    def give_start(self) -> None:
        """Load the weights of --init into a network that lacks them, as it was to be resumed and cannot be."""
        assert self._config.init is not None
        assert self._start is not None
        source = read_backbone(self._config.init)
        start = load_init(self.model, source, self._config)
        check_same(start, self._start, "--init")
        self.lacks_weights = False

    def stream_options(self, samples: int) -> dict[str, Any]:
        """Return the arguments of a stream for the autoencoder, whose crops may grow during training."""
        return training_stream(self.model, self._config.to_json(), samples)

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return images [B, C, H, W] and their mask units [B, U]."""
        return batch.images, batch.units

    def example(self, images: int) -> tuple[Tensor, ...]:
        """Return images [B, C, H, W] and units [B, U] in raster order."""
        shape = (images, self.preprocessing.channels, *self.model.img_size)
        return torch.zeros(shape), torch.arange(self.model.units).repeat(images, 1)

    def scorer(self, device: torch.device, decoding: dict[str, Any]) -> FeatureScorer | None:
        """Return what scores frozen features, with --evaluate-every."""
        if self._config.evaluate_every is None:
            return None
        if self._scored is not None:
            return FeatureScorer(self.build, self._scored, device, decoding, data_name=self._scored.place)
        first, *others = self._manifest.parts
        if others:
            logger.info("evaluation is on %s, the first data set: --evaluate-on names another", first.place)
        return FeatureScorer(self.build, first, device, decoding, data_name=first.place if others else None)

    def previewer(self, run: Path, device: torch.device, decoding: dict[str, Any]) -> ReconstructionPreviewer:
        """Return what draws reconstructions."""
        options = self.model.stream_options()
        shown = self._config.show_channels
        return ReconstructionPreviewer(run, self.build, self._manifest, options, device, decoding, shown)

    @property
    def scores_start(self) -> bool:
        """Whether the network is scored before the first step, so that one sees what it has inherited."""
        return self._start is not None

    def preview_steps(self, steps: int) -> frozenset[int]:
        """Return a few steps, denser at the start."""
        return preview_steps(steps)

    def facts(self) -> dict[str, Any]:
        """Return the number of parameters, of mask units, and of units that each view sees."""
        visible, _ = self.model.split_units(torch.arange(self.model.units)[None])
        return {
            **({"init": self._start.to_json(), "backbone_args": self._args} if self._start else {}),
            "parameters": parameter_count(self.model),
            "units": self.model.units,
            "view_sizes": [view.shape[1] for view in visible],
        }

    def describe(self) -> list[tuple[str, str]]:
        """Return the network, its views, and where its weights are from."""
        config, facts = self._config, self.facts()
        sizes = facts["view_sizes"]
        views = "1 view" if len(sizes) == 1 else f"{len(sizes)} views"
        usual = [f"crops of {PretrainConfig.crop_scale:.0%} or more"]
        start = config.start_size or config.image_size
        size = f"{start} to {config.image_size}" if start < config.image_size else config.image_size
        return [
            (
                "model",
                f"{config.model}, {config.method}: {views} of {' + '.join(map(str, sizes))} of {facts['units']} "
                f"units of {self.model.encoder.unit_size} px, images of {size} px; "
                f"{facts['parameters'] / 1e6:.1f} M parameters",
            ),
            *([("images", ", ".join(config.crops_in_words))] if config.crops_in_words != usual else []),
            *(self._start.describe() if self._start else []),
        ]
