"""Accuracy of a classifier on labelled images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from coma.errors import DataError, DivergedError
from coma.model.classifier import Classifier, correct_of

if TYPE_CHECKING:
    from coma.pipeline.stream import Batch


@dataclass(frozen=True)
class Accuracy:
    """Result of a classifier on a labelled split; percentages."""

    top1: float
    top5: float | None
    """None where there are 5 classes or fewer."""
    loss: float
    """Mean cross-entropy."""
    images: int

    def metrics_line(self, step: int) -> dict[str, Any]:
        """Return an evaluation line of metrics.jsonl."""
        top5 = {} if self.top5 is None else {"accuracy_top5": round(self.top5, 3)}
        return {"step": step, "accuracy": round(self.top1, 3), **top5, "val_loss": self.loss}

    def __str__(self) -> str:
        """Return the result in words."""
        top5 = "" if self.top5 is None else f", top-5 {self.top5:.1f}%"
        return f"accuracy {self.top1:.1f}%{top5}, loss {self.loss:.3f} on val"


@torch.no_grad()
def accuracy(model: Classifier, batches: Iterable[Batch], after_batch: Callable[[], None] = lambda: None) -> Accuracy:
    """Test a classifier, in the mode that it is in, on batches of a `Stream(training=False)`.

    Raises:
        DataError: there is no image, or no label.
        DivergedError: an output of the network is not finite.
    """
    images = first = five = classes = 0
    loss = 0.0
    for batch in batches:
        if batch.labels is None:
            raise DataError("the images to test on have no labels: shard class folders")
        logits = model.logits(batch.images)
        if not bool(logits.isfinite().all()):
            raise DivergedError("the network's outputs are not finite")
        classes = logits.shape[1]
        first += correct_of(logits, batch.labels)
        five += correct_of(logits, batch.labels, 5)
        loss += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
        images += len(batch.labels)
        after_batch()
    if not images:
        raise DataError("there is no image to test on")
    return Accuracy(
        top1=100 * first / images, top5=100 * five / images if classes > 5 else None, loss=loss / images, images=images
    )
