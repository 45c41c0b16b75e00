"""Fine-tuning as a task: a pre-trained backbone and a new classifier, trained on labels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor

from coma.errors import DataError
from coma.evaluation.accuracy import accuracy
from coma.evaluation.score import has_split
from coma.model.classifier import Classifier
from coma.model.encoders import give_weights
from coma.pipeline import Batch, Stream
from coma.shards.manifest import Manifest, read_manifest
from coma.training.config.finetune_options import FinetuneConfig
from coma.training.tasks.augment import Augment
from coma.training.tasks.source import read_source
from coma.training.tasks.task import Task, parameter_count

logger = logging.getLogger(__name__)

EVALUATION_BATCH = 64


class Finetuning(Task):
    """What `coma finetune` trains.

    Args:
        config: the run's.
        manifest: what it trains on.

    Raises:
        UsageError, DataError: no such source, no labels, or sizes that do not fit each other.
    """

    model: Classifier

    def __init__(self, config: FinetuneConfig, manifest: Manifest) -> None:
        """Make the network."""
        self._config, self._manifest = config, manifest
        self._classes = classes_of(manifest)
        self._val = tested_on(manifest)
        self._source = source = read_source(config.source)
        self._image_size = config.image_size or source.image_size
        self.model = self.build()
        give_weights(self.model.backbone, source.weights, source.path)
        self.source_digest = source.digest()
        self.ema_decay = config.ema_decay

    def build(self) -> Classifier:
        """Make the classifier with other weights."""
        return Classifier(
            self._source.model,
            self._classes,
            img_size=self._image_size,
            patch_size=self._source.patch_size,
            drop_path_rate=self._config.drop_path,
        )

    def stream_options(self, samples: int) -> dict[str, Any]:
        """Return what a classifier wants of a stream: random crops, whole."""
        return {**self._evaluation_options, "crop_scale": (self._config.crop_scale, 1.0)}

    @property
    def _evaluation_options(self) -> dict[str, Any]:
        return {"views": 1, "unit_size": self.model.crop_unit, "image_size": self._image_size}

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return augmented images [B, 3, H, W] and the shares of classes in them [B, N]."""
        assert batch.labels is not None
        return self._augment(batch.images, batch.labels)

    @cached_property
    def _augment(self) -> Augment:
        return Augment(self._config, self._classes, next(self.model.parameters()).device)

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return a layer's matrices, which decay, and its other parameters, for each layer."""
        backbone: Any = self.model.backbone
        groups: list[dict[str, Any]] = param_groups_layer_decay(
            backbone,
            weight_decay=weight_decay,
            no_weight_decay_list=backbone.no_weight_decay(),
            layer_decay=self._config.layer_decay,
        )
        kept = ("params", "weight_decay", "lr_scale")
        return [{name: group[name] for name in kept} for group in groups]

    def scorer(self, device: torch.device, decoding: dict[str, Any]) -> AccuracyScorer | None:
        """Return what tests the classifier on split val."""
        if self._val is None:
            logger.warning(
                "%s has no split val beside it, so accuracy is not measured: shard with --val-fraction",
                self._manifest.folder,
            )
            return None
        return AccuracyScorer(self.build, self._val, device, {**self._evaluation_options, **decoding})

    def facts(self) -> dict[str, Any]:
        """Return the size of the network, and what makes it."""
        return {
            "parameters": parameter_count(self.model),
            "network": {
                "model": self._source.model,
                "patch_size": self._source.patch_size,
                "image_size": self._image_size,
                "unit_size": self.model.crop_unit,
                "classes": self._classes,
                "class_names": self._manifest.class_names,
            },
        }

    def opening(self) -> list[tuple[str, str]]:
        """Return the network, where it is from, and what is done to the images."""
        config = self._config
        changes = [
            f"crops of {config.crop_scale:.0%} or more",
            *([f"RandAugment {config.rand_augment}"] if config.rand_augment else []),
            *([f"erasing {config.erasing:g}"] if config.erasing else []),
            *([f"mixup {config.mixup:g}"] if config.mixup else []),
            *([f"CutMix {config.cutmix:g}"] if config.cutmix else []),
            *([f"label smoothing {config.label_smoothing:g}"] if config.label_smoothing else []),
        ]
        return [
            (
                "model",
                f"{self._source.model}, {self._classes} classes, images of {self._image_size} px; "
                f"{self.facts()['parameters'] / 1e6:.1f} M parameters",
            ),
            ("start", f"from the backbone in {config.source}"),
            ("images", ", ".join(changes)),
            (
                "layers",
                f"each at {config.layer_decay:g} of the rate above it, drop path {config.drop_path:g}",
            ),
        ]


class AccuracyScorer:
    """Tests a classifier on a labelled split, in float32 and on the side: training never notices.

    Args:
        build: makes the network.
        data: what it is tested on.
        stream: arguments for the stream.
    """

    def __init__(
        self, build: Callable[[], Classifier], data: Manifest, device: torch.device, stream: dict[str, Any]
    ) -> None:
        """Remember them."""
        self._build, self._data, self._device, self._stream = build, data, device, stream

    def score(self, weights: dict[str, Tensor], step: int, after_batch: Callable[[], None]) -> dict[str, Any]:
        """Return the evaluation line of the network with these weights."""
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            model = self._build()
            model.load_state_dict(weights)
            with Stream(
                self._data,
                batch_size=EVALUATION_BATCH,
                training=False,
                device=self._device,
                **self._stream,
            ) as stream:
                found = accuracy(model.to(self._device).eval(), stream, after_batch)
        line = found.metrics_line(step)
        logger.info("step %d: %s", step, found)
        return line


def tested_on(manifest: Manifest) -> Manifest | None:
    """Return split val of a data set whose split train is given, None if there is none.

    Raises:
        DataError: its classes are others.
    """
    if manifest.split != "train" or not has_split(manifest.folder.parent, "val"):
        return None
    val = read_manifest(manifest.folder.parent, "val")
    if val.label is None or val.class_names != manifest.class_names:
        raise DataError(
            f"{val.folder} has other classes than {manifest.folder}, or none: shard both with one command"
        )
    return val


def classes_of(manifest: Manifest) -> int:
    """Count the classes of labelled data.

    Raises:
        DataError: there are no labels, or one class alone.
    """
    if manifest.label is None:
        raise DataError(f"{manifest.folder} has no labels to train on: shard a tree of class folders")
    names = manifest.class_names
    classes = int(manifest.label.max()) + 1 if names is None else len(names)
    if classes < 2:
        raise DataError(f"{manifest.folder} has one class alone, so nothing can be told apart")
    return classes
