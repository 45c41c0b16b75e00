"""Read a run folder without DeepSpeed: its configuration, newest checkpoint, weights and model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coma.errors import DataError, UsageError
from coma.pipeline.sizes import CropSizes
from coma.runs.names import AVERAGE_NAME, CHECKPOINTS_NAME, CONFIG_NAME, LATEST_NAME, MANIFEST_NAME, WEIGHTS_NAME
from coma.shards.files import hash_file

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


def read_config(run: Path) -> dict[str, Any]:
    """Return RUN/config.json: {"config": ..., "resolved": ..., "versions": ...}.

    Raises:
        DataError: `run` is no run folder.
    """
    path = Path(run) / CONFIG_NAME
    try:
        content = json.loads(path.read_text())
    except OSError:
        raise DataError(f"{run} is not a run folder: it has no {CONFIG_NAME}") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise DataError(f"{path} does not describe a run")
    return {**content, "config": current_names(content["config"])}


def other_format(path: Path, number: int) -> str:
    """Return why training does not resume from `path`, a run or checkpoint of format `number`."""
    return (
        f"{path} is of format {number}, from {'an older' if number < FORMAT else 'a newer'} version of coma, and this "
        f"one resumes from format {FORMAT} only: begin anew with another --out, or finish that run with the version "
        "in its config.json"
    )


def latest_checkpoint(run: Path) -> Path | None:
    """Return the folder of the run's newest checkpoint, None if it has none yet."""
    folder = Path(run) / CHECKPOINTS_NAME
    try:
        name = (folder / LATEST_NAME).read_text().strip()
    except OSError:
        return None
    path = folder / name
    return path if path.is_dir() and path.parent == folder else None


def run_of(run_or_checkpoint: Path) -> tuple[Path, Path]:
    """Return (run folder, checkpoint folder) for either of them; for a run, its newest checkpoint.

    Raises:
        DataError: it is neither, or the run has no checkpoint.
    """
    path = Path(run_or_checkpoint)
    if (path / WEIGHTS_NAME).is_file() and path.parent.name == CHECKPOINTS_NAME:
        return path.parent.parent, path
    if not path.is_dir():
        raise DataError(f"no run at {path}: " + ("it is a file" if path.exists() else "no such folder"))
    read_config(path)
    checkpoint = latest_checkpoint(path)
    if checkpoint is None:
        raise DataError(f"{path} has no checkpoint yet: let `coma pretrain` run until it saves one")
    if not (checkpoint / WEIGHTS_NAME).is_file():
        raise DataError(f"{checkpoint} has no {WEIGHTS_NAME}")
    return path, checkpoint


def build_model(config: dict[str, Any]) -> CoMA | MAE:
    """Make the freshly initialised autoencoder that `config` (of `read_config`) describes."""
    from coma.model.build import build

    return build(
        config["model"],
        config["method"],
        views=config["views"],
        image_size=config["image_size"],
        patch_size=config["patch_size"],
    )


def training_stream(model: MaskedAutoencoder, config: dict[str, Any], samples: int) -> dict[str, Any]:
    """Return the arguments of a run's `Stream`: those of its model, and the schedule of crops that grow.

    Args:
        model: what `build_model` made of `config`.
        samples: number of samples in all steps that the run was to have when it began.

    Raises:
        UsageError: the first crops are not a multiple of the mask unit, or too small for the views.
    """
    options = model.stream_options()
    if (start := config.get("start_size")) is None:
        return options
    sizes = CropSizes(start, options["image_size"], options["unit_size"], samples)
    if options["views"] > sizes.units(start):
        raise UsageError(
            f"start size {start} has {sizes.units(start)} mask unit(s) of {options['unit_size']} pixels, for "
            f"{options['views']} views: start with more"
        )
    return {**options, "image_size": sizes}


def load_autoencoder(run_or_checkpoint: Path, device: str | torch.device = "cpu") -> CoMA | MAE:
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
    model = build_model(content["config"])
    _load_weights(model, run, checkpoint)
    return model.to(device).eval()


def is_finetuned(content: dict[str, Any]) -> bool:
    """Whether `content` (of `read_config`) is that of a fine-tuned classifier."""
    return "network" in content.get("resolved", {})


def load_classifier(run_or_checkpoint: Path) -> Classifier:
    """Load the fine-tuned classifier of a run (its newest checkpoint) or of a checkpoint folder, in eval mode.

    Raises:
        DataError: naming what is missing or does not fit.
    """
    from coma.model.classifier import Classifier

    run, checkpoint = run_of(run_or_checkpoint)
    network = read_config(run)["resolved"]["network"]
    model = Classifier(
        network["model"], network["classes"], img_size=network["image_size"], patch_size=network["patch_size"]
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
    """
    check_weights(checkpoint)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = weights_path(checkpoint)
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    return weights


def check_weights(checkpoint: Path) -> None:
    """Compare a checkpoint's weights with the hash that was noted when they were saved.

    Raises:
        DataError: the weights are damaged.
    """
    trained = weights_path(checkpoint)
    try:
        noted = json.loads((checkpoint / MANIFEST_NAME).read_text())["files"][trained.name]
    except (OSError, ValueError, KeyError, TypeError):
        return  # no hash was noted; loading tells whether the weights can be read
    try:
        hashed = hash_file(trained)
    except OSError as error:
        raise DataError(f"{trained} cannot be read: {error.strerror}") from None
    if hashed != noted.get("xxh3_64"):
        raise DataError(
            f"{trained} is damaged, its bytes have changed since they were saved: name an earlier checkpoint"
        )
