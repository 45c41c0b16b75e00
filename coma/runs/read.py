"""Read a run folder without DeepSpeed: its configuration, newest checkpoint, weights and model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coma.errors import DataError, DivergedError, UsageError
from coma.pipeline.preprocessing import Preprocessing
from coma.pipeline.sizes import CropSizes
from coma.runs.lines import read_object
from coma.runs.names import (
    AVERAGE_NAME,
    CHECKPOINT_PATTERN,
    CHECKPOINTS_NAME,
    CONFIG_NAME,
    LATEST_NAME,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    checkpoints,
)
from coma.shards.files import folder_at, hash_file, without_credentials
from coma.shards.shares import named_sources

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from coma.model.autoencoder import MaskedAutoencoder
    from coma.model.classifier import Classifier
    from coma.model.coma import CoMA
    from coma.model.mae import MAE

FORMAT = 2
"""Format of run folders and checkpoints. Raised whenever a run resumed from older files would not continue as it
began: when their content changes, or the order of the samples, or what a network computes. Format 1 bore no number
and had DeepSpeed's files."""

_RENAMED = {"average_decay": "ema_decay", "--average-decay": "--ema-decay"}


def current_names(options: dict[str, Any]) -> dict[str, Any]:
    """Return "config" or "identity" of an older config.json with the names that its options have now."""
    return {_RENAMED.get(name, name): value for name, value in options.items()}


def read_config(run: Path | str) -> dict[str, Any]:
    """Return RUN/config.json: {"config": ..., "resolved": ..., "versions": ...}.

    Raises:
        DataError: `run` is no run folder.
    """
    path = Path(run) / CONFIG_NAME
    with as_data_error(path):
        if not path.is_file():
            raise DataError(f"{run} is not a run folder: it has no {CONFIG_NAME}")
    content = read_object(path)
    sections = [content.get("config"), content.get("resolved", {}), content.get("versions", {})]
    if not all(isinstance(section, dict) for section in sections):
        raise DataError(f"{path} does not describe a run")
    return {**content, "config": current_names(content["config"])}


def run_data(run: Path | str) -> Path:
    """Return the one data set that a run was trained on. Raises DataError if its config.json names none, or several."""
    data, *others = run_data_sets(run)
    if others:
        names = " and ".join(without_credentials(str(each)) for each in (data, *others))
        raise DataError(f"{run} was trained on {1 + len(others)} data sets, {names}: name one after the run")
    return data


def run_data_sets(run: Path | str) -> list[Path]:
    """Return the data sets that a run was trained on. Raises DataError if its config.json names none."""
    data = read_config(run).get("resolved", {}).get("data")
    if isinstance(data, str):
        return [folder_at(data)]
    if not isinstance(data, list) or not data:
        raise DataError(f"{Path(run) / CONFIG_NAME} names no data set: name one after the run")
    return [folder_at(each.place) for each in named_sources(data)]


def other_format(path: Path, number: int) -> str:
    """Return why training does not resume from `path`, a run or checkpoint of format `number`."""
    return (
        f"{path} is of format {number}, from {'an older' if number < FORMAT else 'a newer'} version of coma, and this "
        f"one resumes from format {FORMAT} only: begin anew with another --out, or finish that run with the version "
        "in its config.json"
    )


def latest_checkpoint(run: Path | str) -> Path | None:
    """Return the folder of the run's newest checkpoint, None if it has none yet."""
    folder = Path(run) / CHECKPOINTS_NAME
    try:
        name = (folder / LATEST_NAME).read_text().strip()
    except (OSError, ValueError):
        return None
    path = folder / name
    return path if re.fullmatch(CHECKPOINT_PATTERN, name) and path.is_dir() else None


def run_of(run_or_checkpoint: Path | str) -> tuple[Path, Path]:
    """Return (run folder, checkpoint folder) for either of them; for a run, its newest checkpoint.

    Raises:
        DataError: it is neither, or the run has no checkpoint.
    """
    path = Path(run_or_checkpoint)
    with as_data_error(path):
        if (path / WEIGHTS_NAME).is_file() and path.parent.name == CHECKPOINTS_NAME:
            return path.parent.parent, path
        if not path.is_dir():
            raise DataError(f"no run at {path}: " + ("it is a file" if path.exists() else "no such folder"))
    read_config(path)
    checkpoint = latest_checkpoint(path)
    if checkpoint is None:
        if saved := checkpoints(path):
            latest = path / CHECKPOINTS_NAME / LATEST_NAME
            raise DataError(
                f"{latest}, which names the newest checkpoint, is lost or damaged: name one, like {saved[0]}"
            )
        raise DataError(f"{path} has no checkpoint yet: let its training run until it saves one")
    if not (checkpoint / WEIGHTS_NAME).is_file():
        raise DataError(f"{checkpoint} has no {WEIGHTS_NAME}")
    return path, checkpoint


def network_of(content: dict[str, Any]) -> dict[str, Any]:
    """Return what `build_model` makes the network of a run of, given `content` (of `read_config`).

    Those are its options, what its images are, and the arguments of a ViT that has taken over weights of others.
    """
    resolved = content.get("resolved", {})
    return {**content["config"], "pixels": resolved.get("pixels"), "backbone_args": resolved.get("backbone_args")}


def preprocessing_of(content: dict[str, Any]) -> Preprocessing:
    """Return how a run prepares its images, given `content` (of `read_config`); an older run's are 8-bit RGB."""
    return _preprocessing(content.get("resolved", {}))


def _preprocessing(section: dict[str, Any]) -> Preprocessing:
    with _complete("resolved"):
        return Preprocessing.from_json(section.get("pixels"))


def build_model(config: dict[str, Any]) -> CoMA | MAE:
    """Make the freshly initialised autoencoder that `config` (of `network_of`) describes."""
    from coma.model.build import build

    with _complete("config"):
        name, method = config["model"], config["method"]
        options = {option: config[option] for option in ("views", "image_size", "patch_size")}
    preprocessing = _preprocessing(config)
    if preprocessing.channels != 3:
        options["in_chans"] = preprocessing.channels
    model = build(name, method, backbone_args=config.get("backbone_args"), **options)
    model.preprocessing = preprocessing
    return model


@contextmanager
def _complete(section: str) -> Iterator[None]:
    """Raise a DataError where the block looks for something that a run's config.json lacks."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the run's {CONFIG_NAME} is damaged: its section {section} lacks {error}") from None


@contextmanager
def as_data_error(path: Path) -> Iterator[None]:
    """Raise a DataError in place of an OSError about `path`."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None


def augmentation(config: dict[str, Any]) -> dict[str, Any]:
    """Return a run's arguments of `Stream` for random crops; a run that is older than one of them has its default."""
    return {
        "crop_scale": (config.get("crop_scale", 0.2), 1.0),
        "flips": config.get("flips", "horizontal"),
        "quarter_turns": config.get("quarter_turns", False),
    }


def training_stream(model: MaskedAutoencoder, config: dict[str, Any], samples: int) -> dict[str, Any]:
    """Return the arguments of a run's `Stream`: those of its model, and the schedule of crops that grow.

    Args:
        model: what `build_model` made of `config`.
        samples: number of samples in all steps that the run was to have when it began.

    Raises:
        UsageError: the first crops are not a multiple of the mask unit, or too small for the views.
    """
    options = {**model.stream_options(), **augmentation(config)}
    if (start := config.get("start_size")) is None:
        return options
    sizes = CropSizes(start, options["image_size"], options["unit_size"], samples)
    if options["views"] > sizes.units(start):
        raise UsageError(
            f"start size {start} has {sizes.units(start)} mask unit(s) of {options['unit_size']} pixels, for "
            f"{options['views']} views: start with more"
        )
    return {**options, "image_size": sizes}


def load_autoencoder(run_or_checkpoint: Path | str, device: str | torch.device = "cpu") -> CoMA | MAE:
    """Load the trained autoencoder of a run (its newest checkpoint) or of a checkpoint folder, in eval mode.

    Raises:
        DataError: naming what is missing or does not fit.
    """
    run, checkpoint = run_of(run_or_checkpoint)
    content = read_config(run)
    if is_finetuned(content):
        raise DataError(
            f"{run} is a fine-tuned classifier, which has neither views nor a decoder: `coma export` it and name "
            "the export, or name the run that it was made of"
        )
    model = build_model(network_of(content))
    _load_weights(model, run, checkpoint)
    return model.to(device).eval()


def is_finetuned(content: dict[str, Any]) -> bool:
    """Whether `content` (of `read_config`) is that of a fine-tuned classifier."""
    return "network" in content.get("resolved", {})


def load_classifier(run_or_checkpoint: Path | str) -> Classifier:
    """Load the fine-tuned classifier of a run (its newest checkpoint) or of a checkpoint folder, in eval mode.

    Raises:
        DataError: naming what is missing or does not fit.
    """
    from coma.model.classifier import Classifier

    run, checkpoint = run_of(run_or_checkpoint)
    resolved = read_config(run)["resolved"]
    network, preprocessing = resolved["network"], _preprocessing(resolved)
    with _complete("network"):
        name, classes, size, patch = (network[key] for key in ("model", "classes", "image_size", "patch_size"))
    model = Classifier(
        name,
        classes,
        img_size=size,
        patch_size=patch,
        preprocessing=preprocessing,
        args=network.get("backbone_args"),
    )
    _load_weights(model, run, checkpoint)
    return model.eval()


def _load_weights(model: nn.Module, run: Path, checkpoint: Path) -> None:
    try:
        model.load_state_dict(read_weights(checkpoint))
    except RuntimeError as error:
        path = weights_path(checkpoint)
        raise DataError(f"{path} does not fit the model of {run}: {str(error).splitlines()[0]}") from error


def weights_path(checkpoint: Path) -> Path:
    """Return the file of the weights to score and export: their moving average (EMA), if the run keeps one."""
    average = checkpoint / AVERAGE_NAME
    return average if average.is_file() else checkpoint / WEIGHTS_NAME


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Read the whole network's weights of a checkpoint from `weights_path`, checked against their hash.

    Raises:
        DataError: they are damaged.
        DivergedError: they are not finite.
    """
    check_weights(checkpoint)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = weights_path(checkpoint)
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    require_finite(weights, path)
    return weights


@contextmanager
def naming_the_weights(path: Path) -> Iterator[None]:
    """Add to a DivergedError of the block from which checkpoint or export, at `path`, the network is."""
    try:
        yield
    except DivergedError as error:
        raise DivergedError(f"{path}: {error}: the training diverged, take an earlier checkpoint") from None


def require_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise DivergedError if one of the weights, which were read from `path`, is not finite."""
    for name, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise DivergedError(
                f"{path}: {name} is not finite (NaN or infinity), as the training diverged: take the weights of an "
                "earlier checkpoint"
            )


def check_weights(checkpoint: Path) -> None:
    """Compare a checkpoint's weights with the hash that was noted when they were saved.

    Raises:
        DataError: the weights are damaged.
    """
    trained = weights_path(checkpoint)
    try:
        files = read_object(checkpoint / MANIFEST_NAME)["files"]
        noted = files[trained.name]["xxh3_64"]
    except (DataError, KeyError, TypeError):
        return  # no hash was noted; loading tells whether the weights can be read
    if AVERAGE_NAME in files and trained.name != AVERAGE_NAME:
        raise DataError(f"{checkpoint / AVERAGE_NAME} is lost: name another checkpoint")
    with as_data_error(trained):
        hashed = hash_file(trained)
    if hashed != noted:
        raise DataError(
            f"{trained} is damaged, its bytes have changed since they were saved: name an earlier checkpoint"
        )
