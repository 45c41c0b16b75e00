"""What the features are worth while training goes on: nearest neighbours and RankMe, now and then."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coma.errors import DataError
from coma.evaluation.sample import few_of
from coma.evaluation.score import has_split, score
from coma.shards.manifest import Manifest, read_manifest
from coma.training.config.resolve import ResolvedRun
from coma.training.processes.world import World
from coma.training.tasks.task import Scorer

if TYPE_CHECKING:
    from coma.model.coma import MaskedAutoencoder

logger = logging.getLogger(__name__)

TRAIN_IMAGES = 3000
VAL_IMAGES = 1000
_LEAST_IMAGES = 5
_SHOWN = (("knn", "20-NN", "%"), ("rankme", "RankMe", ""))


def is_due(step: int, resolved: ResolvedRun, every_epochs: int | None) -> bool:
    """Whether to evaluate after this step: every so many epochs, and after the last step."""
    return every_epochs is not None and (step == resolved.steps or resolved.ends_epochs(step, every_epochs))


class Evaluator:
    """Scores the run's own data, in float32 and on the side: training never notices.

    The images are at most `TRAIN_IMAGES` to learn from and `VAL_IMAGES` to test on, always the same, and tested as by
    `coma knn`; without labels, RankMe is all there is to say.

    Args:
        build: makes the network.
        data: what the run trains on.
        decoding: arguments for the stream: workers, where to decode.

    Raises:
        DataError: too few images.
    """

    def __init__(
        self,
        build: Callable[[], MaskedAutoencoder],
        data: Manifest,
        device: torch.device,
        decoding: dict[str, Any],
    ) -> None:
        """Choose the images."""
        if len(data) < _LEAST_IMAGES:
            raise DataError(
                f"{data.folder} has {len(data)} images, and an evaluation holds a fifth of them out: leave out "
                "--evaluate-every"
            )
        self._build, self._device, self._decoding = build, device, decoding
        self._train, self._val = few_of(data, TRAIN_IMAGES), None
        labels = self._train.label
        self._labelled = labels is not None and bool((labels != labels[0]).any())
        if not self._labelled:
            logger.info("%s has no labels to tell apart: RankMe alone is evaluated", data.folder)
        elif data.split == "train" and has_split(data.folder.parent, "val"):
            val = few_of(read_manifest(data.folder.parent, "val"), VAL_IMAGES)
            self._val = None if val.label is None else val

    def score(self, weights: dict[str, Tensor], step: int, after_batch: Callable[[], None]) -> dict[str, Any]:
        """Return the evaluation line of the network with these weights; `after_batch` is called now and then."""
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            model = self._build()
            model.load_state_dict(weights)
            scores = score(
                model.to(self._device).eval(),
                self._train,
                self._val,
                probe=False,
                knn=self._labelled,
                device=str(self._device),
                progress=lambda *_: after_batch(),
                **self._decoding,
            )
        line = scores.metrics_line(step)
        shown = [f"{name} {line[key]:.1f}{unit}" for key, name, unit in _SHOWN if key in line]
        logger.info("step %d: %s", step, ", ".join(shown))
        return line


def evaluate(
    evaluator: Scorer,
    world: World,
    weights: dict[str, Tensor],
    step: int,
    after_batch: Callable[[], None],
) -> dict[str, Any]:
    """Evaluate on rank 0 and return its line, empty on the others; collective.

    The others hear from rank 0 after each batch, so that none waits so long that it takes rank 0 for lost;
    `after_batch` is called on all of them.
    """
    if not world.leads:
        while not world.sum([0.0])[0]:
            after_batch()
        return {}

    def tell() -> None:
        world.barrier()
        after_batch()

    line = evaluator.score(weights, step, after_batch=tell)
    world.sum([1.0])
    return line
