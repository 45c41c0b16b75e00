"""Fine-tuning as a task: a pre-trained backbone with a new classifier, trained on labels."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any

import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor

from coma.errors import DataError
from coma.evaluation.score import has_split
from coma.model.classifier import Classifier
from coma.model.encoders import checkpoint_stages, undecayed
from coma.pipeline import Batch
from coma.pipeline.preprocessing import of_data
from coma.runs.read import augmentation
from coma.shards.manifest import Manifest, read_manifest
from coma.training.config.finetune_options import FinetuneConfig
from coma.training.tasks.augment import Augment, takes_colours
from coma.training.tasks.pretrained import PretrainedBackbone, read_backbone
from coma.training.tasks.scorer import AccuracyScorer
from coma.training.tasks.start_from import Start, check_same, load_backbone, recorded_start
from coma.training.tasks.task import Task, parameter_count

logger = logging.getLogger(__name__)


class Finetuning(Task):
    """What `coma finetune` trains.

    Raises:
        UsageError, DataError: no such backbone, no labels, or sizes that do not fit each other.
    """

    model: Classifier

    def __init__(self, config: FinetuneConfig, manifest: Manifest) -> None:
        self._config, self._manifest = config, manifest
        self._classes = classes_of(manifest)
        self._val = val_split(manifest)
        recorded = recorded_start(config)
        self.lacks_weights = recorded is not None
        self._pretrained: Start | PretrainedBackbone = recorded or read_backbone(config.source)
        self._image_size = config.image_size or self._pretrained.image_size
        before = self._pretrained.preprocessing
        alike = before.pixels == of_data(manifest.pixels).pixels
        self.preprocessing = of_data(
            manifest.pixels,
            mean=config.mean,
            std=config.std,
            clip_percentile=config.clip_percentile,
            base=before if alike else None,
        )
        self.model = self.build()
        checkpoint_stages(self.model.backbone, config.checkpointed_stages)
        self._start = recorded or self._load(self._pretrained)
        self.init_digest = self._start.digest
        self.ema_decay = config.ema_decay

    def _load(self, source: Start | PretrainedBackbone) -> Start:
        assert isinstance(source, PretrainedBackbone)
        given = str(self._config.source)
        return load_backbone(self.model.backbone, source, source.model, given, "the backbone", self.preprocessing)

    def give_start(self) -> None:
        """Load the backbone's weights into a network that lacks them, as it was to be resumed and cannot be."""
        check_same(self._load(read_backbone(self._config.source)), self._start, "the backbone")
        self.lacks_weights = False

    def build(self) -> Classifier:
        """Make another classifier with new weights."""
        return Classifier(
            self._pretrained.model,
            self._classes,
            img_size=self._image_size,
            patch_size=self._pretrained.patch_size,
            drop_path_rate=self._config.drop_path,
            preprocessing=self.preprocessing,
            args=self._pretrained.backbone_args,
        )

    def stream_options(self, samples: int) -> dict[str, Any]:
        """Return the arguments of a stream of random crops without masks."""
        return {**self._evaluation_options, **augmentation(self._config.to_json())}

    @property
    def _evaluation_options(self) -> dict[str, Any]:
        return {
            "views": 1,
            "unit_size": self.model.crop_unit,
            "image_size": self._image_size,
            "preprocessing": self.preprocessing,
        }

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return augmented images [B, C, H, W] and their soft labels [B, N]."""
        assert batch.labels is not None
        return self._augment(batch.images, batch.labels)

    def example(self, images: int) -> tuple[Tensor, ...]:
        """Return images [B, C, H, W] and soft labels [B, N]."""
        return torch.zeros(images, self.preprocessing.channels, *self.model.img_size), torch.zeros(
            images, self._classes
        )

    @cached_property
    def _augment(self) -> Augment:
        device = next(self.model.parameters()).device
        return Augment(self._config, self._classes, device, self.preprocessing)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return two groups for each layer: matrices, which decay, and other parameters."""
        backbone: Any = self.model.backbone
        groups: list[dict[str, Any]] = param_groups_layer_decay(
            backbone,
            weight_decay=weight_decay,
            no_weight_decay_list=undecayed(backbone),
            layer_decay=self._config.layer_decay,
        )
        kept = ("params", "weight_decay", "lr_scale")
        return [{name: group[name] for name in kept} for group in groups]

    def scorer(self, device: torch.device, decoding: dict[str, Any]) -> AccuracyScorer | None:
        """Return what measures the accuracy on split val, if there is one."""
        if self._val is None:
            logger.warning(
                "%s has no split val beside it, so accuracy is not measured: shard with --val-fraction",
                self._manifest.folder,
            )
            return None
        return AccuracyScorer(self.build, self._val, device, {**self._evaluation_options, **decoding})

    def facts(self) -> dict[str, Any]:
        """Return the number of parameters and the arguments that make the network."""
        return {
            "parameters": parameter_count(self.model),
            "init": self._start.to_json(),
            "network": {
                "model": self._pretrained.model,
                "patch_size": self._pretrained.patch_size,
                "backbone_args": self._pretrained.backbone_args,
                "image_size": self._image_size,
                "unit_size": self.model.crop_unit,
                "classes": self._classes,
                "class_names": self._manifest.class_names,
            },
        }

    def describe(self) -> list[tuple[str, str]]:
        """Return the network, where its weights are from, and how images are augmented."""
        config = self._config
        changes = [
            f"crops of {config.crop_scale:.0%} or more",
            *([f"flips: {config.flips}"] if config.flips != "horizontal" else []),
            *(["quarter turns"] if config.quarter_turns else []),
            *(
                [f"RandAugment {config.rand_augment}"]
                if config.rand_augment and takes_colours(self.preprocessing)
                else []
            ),
            *([f"erasing {config.erasing:g}"] if config.erasing else []),
            *([f"mixup {config.mixup:g}"] if config.mixup else []),
            *([f"CutMix {config.cutmix:g}"] if config.cutmix else []),
            *([f"label smoothing {config.label_smoothing:g}"] if config.label_smoothing else []),
        ]
        return [
            (
                "model",
                f"{self._pretrained.model}, {self._classes} classes, images of {self._image_size} px; "
                f"{self.facts()['parameters'] / 1e6:.1f} M parameters",
            ),
            *self._start.describe(),
            ("images", ", ".join(changes)),
            *(
                [("", f"no RandAugment, whose colours are of 8-bit RGB: these are {self.preprocessing.pixels}")]
                if config.rand_augment and not takes_colours(self.preprocessing)
                else []
            ),
            ("layers", f"each at {config.layer_decay:g} of the rate above it, drop path {config.drop_path:g}"),
        ]


def val_split(manifest: Manifest) -> Manifest | None:
    """Return split val beside the split train that is given; None if there is none.

    Raises:
        DataError: its classes differ.
    """
    if manifest.split != "train" or not has_split(manifest.folder.parent, "val"):
        return None
    val = read_manifest(manifest.folder.parent, "val")
    if val.label is None or val.class_names != manifest.class_names:
        raise DataError(f"{val.folder} has other classes than {manifest.folder}, or none: shard both with one command")
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
        raise DataError(f"{manifest.folder} has one class only: a classifier needs two or more")
    return classes
