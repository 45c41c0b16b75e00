"""Score a network on a labelled data set: frozen features of two splits, then what the caller asks for.

The split `val` is the test if there is one; otherwise a fifth of `train`, always the same one, is held out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coma.errors import DataError, UsageError
from coma.evaluation.features import Features, extract, held_out_fifth
from coma.evaluation.interval import wilson
from coma.evaluation.knn import knn_accuracy
from coma.evaluation.linear import lars_logits, sgd_logits
from coma.evaluation.probe import logistic_logits, top_accuracy
from coma.evaluation.rankme import rankme
from coma.export.folder import is_export
from coma.export.load import load_export
from coma.runs.lines import append_line
from coma.runs.names import METRICS_NAME, checkpoint_step
from coma.runs.read import load_autoencoder, read_config, run_of
from coma.shards.files import folder_at, is_remote, is_there, without_credentials
from coma.shards.manifest import MANIFEST_NAME, Manifest, read_manifest

if TYPE_CHECKING:
    from coma.model.autoencoder import MaskedAutoencoder

logger = logging.getLogger(__name__)

BATCH_SIZE = 64
HELD_OUT = "a fifth of train, held out"

PROTOCOLS = {"logistic": logistic_logits, "dinov2": sgd_logits, "mae": lars_logits}
"""How a probe is fitted: (train_x, train_labels, test_x) to the test rows' logits."""

Progress = Callable[[int, int], None]  # images done, images in all


@dataclass(frozen=True)
class Scores:
    """What frozen features are worth; percentages are top-1 accuracy on the test rows."""

    probe: float | None
    probe_top5: float | None
    """None where there are 5 classes or fewer, too."""
    knn: float | None
    rankme: float
    """Effective rank of the training features, at most their channels."""
    train_images: int
    test_images: int
    tested_on: str
    channels: int
    classes: int
    protocol: str = "logistic"

    def named(self) -> dict[str, float]:
        """Return the scores that were taken; a probe's name tells its protocol, so that none are mixed."""
        values = {self.probe_name: self.probe, "knn": self.knn, "rankme": self.rankme}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def probe_name(self) -> str:
        """What the probe's accuracy is written under: `probe`, `probe_dinov2`, `probe_mae`."""
        return "probe" if self.protocol == "logistic" else f"probe_{self.protocol}"

    def beside(self) -> dict[str, Any]:
        """Return what is told beside the scores: 95% intervals, and top-5 where it means something."""
        told: dict[str, Any] = {}
        for name, value in self.named().items():
            if name != "rankme":
                told[f"{name}_interval"] = [round(end, 3) for end in wilson(value, self.test_images)]
        if self.probe_top5 is not None:
            told[f"{self.probe_name}_top5"] = round(self.probe_top5, 3)
        return told


def split_folder(data: Path, split: str) -> bool:
    """Tell whether the data set at `data` has the split."""
    return is_there(data / split / MANIFEST_NAME)


def labelled_manifests(data: Path) -> tuple[Manifest, Manifest | None]:
    """Open train and, if there is one, val of a data set (or of that which a split's folder lies in).

    Raises:
        DataError: no such data, no labels in them, or one class alone.
    """
    data = folder_at(data)
    if is_there(data / MANIFEST_NAME) and split_folder(data.parent, "train"):
        data = data.parent
    opened = [read_manifest(data, "train")]  # or the one folder that was given
    if split_folder(data, "val"):
        opened.append(read_manifest(data, "val"))
    for manifest in opened:
        if manifest.label is None:
            raise DataError(
                f"{manifest.folder} has no labels, so nothing can be probed: shard a tree of class folders"
            )
        if len(manifest) and (manifest.label == manifest.label[0]).all():
            raise DataError(f"{manifest.folder} has one class alone, so nothing can be told apart")
    return opened[0], opened[1] if len(opened) > 1 else None


def features_of(
    autoencoder: MaskedAutoencoder,
    train: Manifest,
    val: Manifest | None,
    *,
    batch_size: int = BATCH_SIZE,
    device: str = "cpu",
    progress: Progress | None = None,
    **decoding: Any,
) -> tuple[Features, Features, str]:
    """Extract frozen features: (train, test, what the test rows are), of the backbone as it is, in float32.

    Raises:
        DataError: too few images to hold any out.
    """
    from coma.pipeline import Stream

    options = {**autoencoder.stream_options(), **decoding}
    total = len(train) + (len(val) if val else 0)
    done = 0
    taken: list[Features] = []
    for manifest in (train, val):
        if manifest is None:
            continue
        before = done

        def tell(some: int, _: int, before: int = before) -> None:
            nonlocal done
            done = before + some
            if progress is not None:
                progress(done, total)

        with Stream(manifest, batch_size=batch_size, training=False, device=device, **options) as stream:
            taken.append(extract(autoencoder.backbone, stream, progress=tell))
    if len(taken) == 2:
        return taken[0], taken[1], "val"
    held_out = held_out_fifth(len(taken[0]))
    if not held_out.any():
        raise DataError(
            f"{train.folder} has {total} labelled images; a probe needs 5 or more, or a split val"
        )
    return taken[0].select(~held_out), taken[0].select(held_out), HELD_OUT


def score(
    autoencoder: MaskedAutoencoder,
    data: Path,
    *,
    probe: bool = True,
    knn: bool = True,
    protocol: str = "logistic",
    batch_size: int = BATCH_SIZE,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Scores:
    """Extract features once and score them: linear probe and neighbours, each if asked for, and RankMe.

    Raises:
        DataError: no such data, no labels, or too few images to hold any out.
    """
    train, val = labelled_manifests(data)
    if val is None:
        logger.info("%s has no split val: a fifth of train is held out for testing", data)
    return score_splits(
        autoencoder,
        train,
        val,
        probe=probe,
        knn=knn,
        protocol=protocol,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )


def score_splits(
    autoencoder: MaskedAutoencoder,
    train: Manifest,
    val: Manifest | None,
    *,
    probe: bool,
    knn: bool,
    protocol: str = "logistic",
    device: str = "cpu",
    **extraction: Any,
) -> Scores:
    """Score splits that are open; labels are needed for a probe and for neighbours only."""
    bank, test, tested_on = features_of(autoencoder, train, val, device=device, **extraction)
    x, test_x = bank.x.to(device), test.x.to(device)
    supervised = probe or knn
    labels = bank.require_labels().to(device) if supervised else torch.empty(0)
    test_labels = test.require_labels().to(device) if supervised else torch.empty(0)
    classes = len(set(labels.tolist()) | set(test_labels.tolist()))
    if supervised:
        labels, test_labels = _numbered(labels, test_labels)
    logits = PROTOCOLS[protocol](x, labels, test_x) if probe else None
    return Scores(
        probe=None if logits is None else top_accuracy(logits, test_labels),
        probe_top5=None if logits is None or classes <= 5 else top_accuracy(logits, test_labels, 5),
        knn=knn_accuracy(x, labels, test_x, test_labels) if knn else None,
        rankme=rankme(bank.x),
        train_images=len(bank),
        test_images=len(test),
        tested_on=tested_on,
        channels=bank.x.shape[1],
        classes=classes,
        protocol=protocol,
    )


def _numbered(labels: Tensor, test_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Number the classes that there are from 0, as classifiers want; in the test rows others become -1."""
    present, numbered = torch.unique(labels, return_inverse=True)
    place = torch.searchsorted(present, test_labels).clamp_(max=len(present) - 1)
    return numbered, torch.where(present[place] == test_labels, place, -1)


def score_run(
    run_or_checkpoint: Path,
    data: Path | str | None = None,
    *,
    probe: bool = True,
    knn: bool = True,
    protocol: str = "logistic",
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a run's newest checkpoint (or the one named) and add the result to RUN/metrics.jsonl.

    An export is scored likewise, and nothing is written into it.

    Args:
        run_or_checkpoint: run folder, one of its checkpoints, or what `coma export` wrote.
        data: sharded data set; None: the one that the run was trained on, which an export does not name.
        probe, knn: what to score.
        protocol: how the probe is fitted, one of `PROTOCOLS`.
        batch_size: images at a time.
        device: "cpu", "cuda"; None: a GPU if there is one.
        progress: called after each batch.

    Returns:
        the scores asked for, `step` of the checkpoint, and what they were taken on.

    Raises:
        DataError: no such run or data, no checkpoint, no labels.
        UsageError: an export without data.
    """
    exported = is_export(run_or_checkpoint)
    run, checkpoint = (run_or_checkpoint,) * 2 if exported else run_of(run_or_checkpoint)
    if exported and data is None:
        raise UsageError(f"{run} is an export, which names no data set: name one after it")
    trained_on = None if exported else run_data(run)
    if data is not None:
        data = folder_at(data)
    else:
        assert trained_on is not None
        data = trained_on
        if not is_remote(data) and not data.exists():  # a web server has no folders to ask for
            raise DataError(f"{data}, which {run} was trained on, is not there: name the sharded data set")
        logger.info("data: %s, which the run was trained on", data)
    labelled_manifests(data)  # before the network is loaded
    device = choose_device(device)
    if exported:
        autoencoder, step = load_export(run, device)
    else:
        autoencoder, step = load_autoencoder(checkpoint, device), checkpoint_step(checkpoint)
    scores = score(
        autoencoder,
        data,
        probe=probe,
        knn=knn,
        protocol=protocol,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    line = metrics_line(step, scores)
    kept = False
    if trained_on is not None:
        if _shown(data) != _shown(trained_on):
            line["data"] = without_credentials(str(data))
        kept = append_metrics(run, line)
    return {
        **line,
        **scores.beside(),
        "train_images": scores.train_images,
        "test_images": scores.test_images,
        "tested_on": scores.tested_on,
        "channels": scores.channels,
        "classes": scores.classes,
        "data": without_credentials(str(data)),
        "run": str(run),
        "checkpoint": str(checkpoint),
        "metrics": str(run / METRICS_NAME) if kept else None,
        "device": device,
    }


def _shown(data: Path) -> str:
    return without_credentials(str(data if is_remote(data) else data.resolve()))


def choose_device(asked: str | None = None) -> str:
    """Return the device that was asked for, or a GPU if there is one, else "cpu".

    Raises:
        UsageError: no such device here.
    """
    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        device = torch.device("meta")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < gpus):
        return asked
    raise UsageError(f"--device {asked}: this machine has cpu and {gpus} GPUs (cuda, cuda:0, ...)")


def run_data(run: Path) -> Path:
    """Return the data set that a run was trained on, as its config.json names it."""
    return folder_at(read_config(run)["resolved"]["data"])


def metrics_line(step: int, scores: Scores) -> dict[str, Any]:
    """Return an evaluation line of metrics.jsonl: step, then the scores that were taken."""
    return {"step": step, **{name: round(value, 3) for name, value in scores.named().items()}}


def append_metrics(run: Path, line: dict[str, Any]) -> bool:
    """Append a line to RUN/metrics.jsonl; return False, with a warning, if it cannot be written."""
    try:
        append_line(run / METRICS_NAME, line)
    except OSError as error:
        logger.warning(
            "the scores are not kept in %s: %s", run / METRICS_NAME, (error.strerror or "").lower()
        )
        return False
    return True
