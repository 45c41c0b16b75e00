"""Evaluation during training: frozen features in pre-training, accuracy in fine-tuning, and when it is due."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coma.errors import DataError, DivergedError
from coma.evaluation.accuracy import accuracy
from coma.evaluation.dense.segment import DenseOptions, segment
from coma.evaluation.features import Features, extract, joined
from coma.evaluation.sample import few_of
from coma.evaluation.score import BATCH_SIZE, has_split, score
from coma.pipeline import Stream
from coma.runs.lines import readable_lines
from coma.runs.names import METRICS_NAME
from coma.shards.manifest import Manifest, read_manifest
from coma.training.config.resolve import ResolvedRun
from coma.training.processes.world import World
from coma.training.tasks.task import Scorer, SharedScorer, network_with

if TYPE_CHECKING:
    from coma.model.autoencoder import MaskedAutoencoder
    from coma.model.classifier import Classifier

logger = logging.getLogger(__name__)

TRAIN_IMAGES = 3000
VAL_IMAGES = 1000
_LEAST_IMAGES = 5
_BATCH_SIZE = 64
_SHOWN = (("knn", "20-NN", "%"), ("rankme", "RankMe", ""), ("miou_knn", "mIoU of neighbours", "%"))
_SEGMENTATION = DenseOptions(heads=("knn",), most_patches=20_000, neighbours=(10,), distances=("cosine",))
"""Segmentation during training, with nothing to choose: a tenth of a minute, where that of `coma knn` takes longer."""


def is_due(step: int, resolved: ResolvedRun, every_epochs: int | None) -> bool:
    """Whether to evaluate after this step: every `every_epochs` epochs, and after the last step."""
    return every_epochs is not None and (step == resolved.steps or resolved.ends_epochs(step, every_epochs))


def was_evaluated(run: Path, step: int) -> bool:
    """Whether metrics.jsonl has the scores of an evaluation after `step`."""
    return any("loss" not in line for line in readable_lines(run / METRICS_NAME, step))


def evaluate(
    scorer: Scorer, world: World, weights: dict[str, Tensor], step: int, after_batch: Callable[[], None]
) -> dict[str, Any]:
    """Evaluate on rank 0 and return its line for metrics.jsonl; collective.

    Every rank extracts its share of the features that a `SharedScorer` takes. After each further batch rank 0 reports
    to the others, so that none waits until it takes rank 0 for lost; `after_batch` is called on all of them.

    Raises:
        DivergedError: what the network computes is not finite.
    """
    if world.size > 1 and isinstance(scorer, SharedScorer):
        _extract(scorer, world, weights, step, after_batch)
    line: dict[str, Any] = {}
    failure: Exception | None = None

    def report_progress() -> None:
        world.sum([0.0])
        after_batch()

    if world.is_rank0:
        try:
            line = scorer.score(weights, step, after_batch=report_progress)
        except DivergedError as error:
            failure = _diverged(step, error)
        except Exception as error:
            failure = error
        world.sum([1.0])
    else:
        while not world.sum([0.0])[0]:
            after_batch()

    def result() -> dict[str, Any]:
        if failure is not None:
            raise failure
        return line

    return world.run_on_rank0(result)


def _extract(
    scorer: SharedScorer, world: World, weights: dict[str, Tensor], step: int, after_batch: Callable[[], None]
) -> None:
    """Extract features on all ranks and hand them to the scorer; collective."""
    received = world.broadcast(weights)

    def extract() -> list[Features | None]:
        try:
            return scorer.extract_share(received, world.rank, world.size, after_batch)
        except DivergedError as error:
            raise _diverged(step, error) from error

    scorer.together(world.gather(world.run_on_all(extract)))


def _diverged(step: int, error: DivergedError) -> DivergedError:
    way = "the run has diverged; lower --base-lr" if step else "start from other weights"
    return DivergedError(f"step {step}: {error}: {way}")


class FeatureScorer:
    """Scores frozen features of the run's own data, in float32 and without effect on training.

    At most `TRAIN_IMAGES` images to learn from and `VAL_IMAGES` to test on, always the same, are scored as by
    `coma knn`; without labels, by RankMe only. Where they have masks, their pixels are classified by the 10 nearest of
    20,000 patches.

    The metrics name the data by `data_name`, if it is given: those of several, or others than the run's.

    Raises:
        DataError: there are too few images.
    """

    def __init__(
        self,
        build: Callable[[], MaskedAutoencoder],
        data: Manifest,
        device: torch.device,
        decoding: dict[str, Any],
        data_name: str | None = None,
    ) -> None:
        self._named = {} if data_name is None else {"evaluated_on": data_name}
        if len(data) < _LEAST_IMAGES:
            raise DataError(
                f"{data.folder} has {len(data)} images, and an evaluation holds a fifth of them out: leave out "
                "--evaluate-every"
            )
        self._build, self._device, self._decoding = build, device, decoding
        self._extracted: list[Features] | None = None
        self._train, self._val = few_of(data, TRAIN_IMAGES), None
        other = None
        if data.split == "train" and has_split(data.folder.parent, "val"):
            other = few_of(read_manifest(data.folder.parent, "val"), VAL_IMAGES)
        self._masked_val = other if other is not None and other.mask_classes == data.mask_classes else None
        labels = self._train.label
        self._labelled = labels is not None and bool((labels != labels[0]).any())
        if not self._labelled:
            evaluated = "RankMe and masks are" if data.has_masks else "RankMe is"
            logger.info("%s has no labels of two classes: only %s evaluated", data.folder, evaluated)
        elif other is not None:
            self._val = None if other.label is None else other

    def extract_share(
        self, weights: dict[str, Tensor], rank: int, world_size: int, after_batch: Callable[[], None]
    ) -> list[Features | None]:
        """Return a rank's share of the features of each split, None where it has none: whole batches of all ranks'."""
        shares: list[Features | None] = []
        with network_with(self._build, weights, self._device) as model:
            options = {**model.stream_options(), **self._decoding}
            for manifest in self._splits:
                batches = -(-len(manifest) // BATCH_SIZE)
                start, stop = (batches * place // world_size for place in (rank, rank + 1))
                if start == stop:
                    shares.append(None)
                    continue
                with Stream(
                    manifest,
                    batch_size=BATCH_SIZE,
                    training=False,
                    device=self._device,
                    start_samples=start * BATCH_SIZE,
                    **options,
                ) as stream:
                    shares.append(extract(model.backbone, islice(stream, stop - start), lambda _: after_batch()))
        return shares

    def together(self, shares: list[list[Features | None]]) -> None:
        """Take the shares of all ranks for the next `score`, which then extracts none."""
        of_splits = zip(*shares, strict=True)
        self._extracted = [joined([each for each in of_split if each is not None]) for of_split in of_splits]

    @property
    def _splits(self) -> list[Manifest]:
        return [self._train] if self._val is None else [self._train, self._val]

    def score(self, weights: dict[str, Tensor], step: int, after_batch: Callable[[], None]) -> dict[str, Any]:
        """Return the scores of the network with these weights."""
        extracted, self._extracted = self._extracted, None
        with network_with(self._build, weights, self._device) as model:
            scores = score(
                model,
                self._train,
                self._val,
                probe=False,
                knn=self._labelled,
                device=str(self._device),
                progress=lambda *_: after_batch(),
                elsewhere=None if extracted is None else lambda *_: extracted,
                **self._decoding,
            )
            line = scores.metrics_line(step) | self._named
            if self._train.has_masks:
                segmentation = segment(
                    model.backbone,
                    self._train,
                    self._masked_val,
                    _SEGMENTATION,
                    stream_options={**model.stream_options(), **self._decoding},
                    device=str(self._device),
                    progress=lambda *_: after_batch(),
                )
                line |= segmentation.metrics_line(step)
        shown = [f"{name} {line[key]:.1f}{unit}" for key, name, unit in _SHOWN if key in line]
        logger.info("step %d: %s", step, ", ".join(shown))
        return line


class AccuracyScorer:
    """Measures a classifier's accuracy on a labelled split, in float32 and without effect on training."""

    def __init__(
        self, build: Callable[[], Classifier], data: Manifest, device: torch.device, stream_options: dict[str, Any]
    ) -> None:
        self._build, self._data, self._device, self._stream_options = build, data, device, stream_options

    def score(self, weights: dict[str, Tensor], step: int, after_batch: Callable[[], None]) -> dict[str, Any]:
        """Return the accuracy and loss of the network with these weights."""
        with (
            network_with(self._build, weights, self._device) as model,
            Stream(
                self._data, batch_size=_BATCH_SIZE, training=False, device=self._device, **self._stream_options
            ) as stream,
        ):
            result = accuracy(model, stream, after_batch)
        logger.info("step %d: %s", step, result)
        return result.metrics_line(step)
