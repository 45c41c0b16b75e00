"""Start a run from earlier weights: `coma pretrain --init`, and the backbone that `coma finetune` is given.

Only weights are taken: the run starts at step 0 with a new optimizer. Resuming a run is another matter
(`coma.training.engine.checkpoint`), and needs neither a folder that is gone by then nor the Hub: RUN/config.json has
what the network and the run's identity follow from.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
from torch import nn

from coma.errors import DataError, UsageError
from coma.exports.export import patch_size
from coma.model.encoders import check_model_name, give_weights
from coma.pipeline.preprocessing import DEFAULT, Preprocessing
from coma.runs.lines import read_object
from coma.runs.names import CONFIG_NAME, DEFAULT_RUNS, checkpoint_step
from coma.runs.read import latest_checkpoint
from coma.training.config.finetune_options import FinetuneConfig
from coma.training.config.options import PretrainConfig
from coma.training.tasks.pretrained import PretrainedBackbone, folder_of, is_elsewhere, own_patch
from coma.training.tasks.transfer import transfer

if TYPE_CHECKING:
    from coma.model.autoencoder import MaskedAutoencoder

_WIDTH = 70
"""Columns of a line on the console, beside its subject."""


@dataclass(frozen=True)
class Start:
    """What a run starts from, and what became of those weights; RUN/config.json has it in `resolved.init`."""

    source: str
    """What was named."""
    words: str
    """What it is."""
    digest: str
    """Hash of its weights."""
    model: str
    """Timm name of its network."""
    patch_size: int | None
    """Side of its patches in pixels; None: the model's own."""
    image_size: int
    """Side in pixels of the images that it was trained on."""
    backbone_args: dict[str, Any] | None = None
    """Arguments of a ViT that takes over its class token, registers and positions."""
    images: dict[str, Any] | None = None
    """What images it was trained on, and how they were normalised (`Preprocessing.to_json`); None: RGB as ImageNet."""
    taken: str = ""
    resized: list[str] = field(default_factory=list)
    pixels: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Parts of the source that this network has no place for."""
    new: list[str] = field(default_factory=list)
    """Parts of this network that start from random weights."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How the images that it was trained on were normalised."""
        return Preprocessing.from_json(self.images)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Start:
        """Make it from what `to_json` returned. Raises TypeError."""
        return cls(**fields)

    def describe(self) -> list[tuple[str, str]]:
        """Return (subject, text) lines for the console."""
        parts = (
            ("taken", [self.taken]),
            ("blocks", self.blocks),
            ("resized", self.resized),
            ("pixels", self.pixels),
            ("left", self.left),
            ("new", self.new),
        )
        lines = [f"{self.source}: {self.words}"]
        for name, texts in parts:
            if texts and texts != [""]:
                text = f"{name:<9}{'; '.join(texts)}"
                lines += textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent=" " * 11)
        return [("" if number else "start", line) for number, line in enumerate(lines)]


def check_kind(source: PretrainedBackbone, model: str, flag: str) -> None:
    """Check that a ViT's weights are given to a ViT, and a DyViT's to a DyViT.

    Raises:
        UsageError: they are not.
    """
    if not timm.is_model(model):
        check_model_name(model)
    if source.model.startswith("dyvit_") != model.startswith("dyvit_"):
        raise UsageError(
            f"{flag} {source.path} is {source.words}, and --model is {model}: give --model {source.model}"
            + ("" if source.model.startswith("dyvit_") else ", and --method mae or coma")
        )


def load_init(model: MaskedAutoencoder, source: PretrainedBackbone, config: PretrainConfig) -> Start:
    """Load those weights of --init that fit into a new network, the decoder's too, and tell what became of them.

    Raises:
        UsageError: hardly anything fits, its patches are of another size and --patch-size does not say so, or its
            decoder is of another method.
        DataError: the weights are damaged.
    """
    here, there = patch_size(model.backbone), source.patch_size or own_patch(source.model)
    if there != here and config.patch_size is None:
        raise UsageError(
            f"--init {config.init} has patches of {there} pixels, and this run's are {here}: give --patch-size "
            f"{there}, or --patch-size {here} to have the patch embedding resized"
        )
    preprocessing = model.preprocessing or DEFAULT
    start = load_backbone(model.backbone, source, config.model, str(config.init), "--init", preprocessing)
    start = dataclasses.replace(start, digest=source.digest(with_decoder=True))
    if source.decoder is None:
        return dataclasses.replace(start, new=[*start.new, "decoder"])
    if source.preprocessing.channels != preprocessing.channels:  # it predicts pixels
        return dataclasses.replace(start, left=[*start.left, "decoder"], new=[*start.new, "decoder"])
    try:
        model.decoder.load_state_dict(source.decoder)
    except RuntimeError:
        if source.method != config.method:
            raise UsageError(
                f"--init {config.init} has the decoder of --method {source.method}, which is not that of --method "
                f"{config.method}: give --method {source.method}, or export without --with-decoder"
            ) from None
        return dataclasses.replace(start, left=[*start.left, "decoder"], new=[*start.new, "decoder"])
    return dataclasses.replace(start, taken=f"{start.taken}; the decoder")


def load_backbone(
    backbone: nn.Module,
    source: PretrainedBackbone,
    model: str,
    given: str,
    flag: str,
    preprocessing: Preprocessing = DEFAULT,
) -> Start:
    """Load those weights of a source that fit into a backbone of `build_backbone`.

    Args:
        backbone: what to load them into.
        source: the weights.
        model: timm name of the backbone.
        given: what was named as the source.
        flag: what the command calls the source.
        preprocessing: how the backbone's images are normalised.

    Raises:
        UsageError: hardly anything fits.
        DataError: the weights are damaged.
    """
    same = source.model == model and (source.patch_size or own_patch(model)) == patch_size(backbone)
    same = same and source.preprocessing.channels == preprocessing.channels
    if same and source.backbone_args is None and source.pixels is None:  # nothing may be missing then
        give_weights(backbone, source.weights, Path(source.path))
    done = transfer(backbone, source, flag, preprocessing)
    return Start(
        source=given,
        words=source.words,
        digest=source.digest(),
        model=source.model,
        patch_size=source.patch_size,
        image_size=source.image_size,
        backbone_args=source.backbone_args,
        images=None if source.preprocessing == DEFAULT else source.preprocessing.to_json(),
        **vars(done),
    )


def check_same(start: Start, recorded: Start, flag: str) -> None:
    """Check that a source holds the weights that a run began with.

    Raises:
        UsageError: it holds others.
    """
    if start.digest != recorded.digest:
        raise UsageError(
            f"{flag} {start.source} holds other weights than when the run began, and the run has no whole checkpoint: "
            "give another --out"
        )


# -- a run that is resumed -----------------------------------------------------------------------------------------


def recorded_start(config: PretrainConfig | FinetuneConfig) -> Start | None:
    """Return what the run that a command resumes started from, where its source cannot, or need not, be read again.

    That is a model of timm or of the Hub, and a folder that is gone. None: the source is to be read.
    """
    given = config.init if isinstance(config, PretrainConfig) else config.source
    if given is None or config.resume == "never" or not (is_elsewhere(given) or not folder_of(given).exists()):
        return None
    for run in _candidates(config):
        try:
            content = read_object(run / CONFIG_NAME)
            start = Start.from_json(content["resolved"]["init"])
            steps = int(content["resolved"]["steps"])
        except (DataError, OSError, KeyError, TypeError, ValueError):
            continue
        checkpoint = latest_checkpoint(run)
        unfinished = checkpoint is not None and (checkpoint_step(checkpoint) < steps or config.out is not None)
        if unfinished and Path(start.source) == Path(str(given)):
            return start
    return None


def _candidates(config: PretrainConfig | FinetuneConfig) -> Iterator[Path]:
    """Yield the folders in which a command may find its run."""
    if config.out is not None:
        yield Path(config.out)
        return
    path, number = DEFAULT_RUNS / config.name, 1
    while path.exists():
        yield path
        number += 1
        path = DEFAULT_RUNS / f"{config.name}-{number}"
