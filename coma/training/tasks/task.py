"""What a run teaches a network, as the loop sees it: pre-training is one such task, fine-tuning another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from coma.pipeline import Batch


class Painter(Protocol):
    """Makes a picture of what a network does, on rank 0."""

    def paint(self, weights: dict[str, Tensor], step: int) -> Path: ...  # noqa: D102


class Scorer(Protocol):
    """Scores a network on the side, on rank 0; `after_batch` is to be called now and then."""

    def score(self, weights: dict[str, Tensor], step: int, after_batch: Any) -> dict[str, Any]: ...  # noqa: D102


class Task(ABC):
    """A network to be trained and everything about it that the loop does not know."""

    model: nn.Module
    """Takes `inputs`, returns a loss; the same initial weights on every rank."""
    source_digest: str | None = None
    """A hash of the weights that the run starts from; None: random ones."""
    ema_decay: float = 0.0
    """Of an exponential moving average of the weights, which is scored and exported in their place; 0: none."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Make the same network with other weights, for `full_weights` to be loaded into."""

    @abstractmethod
    def stream_options(self, samples: int) -> dict[str, Any]:
        """Return arguments for the run's `Stream`, of so many samples in all."""

    @abstractmethod
    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return what the network takes, each with a row an image. What is drawn is drawn from the global
        generators of torch, numpy and Python, which the loop seeds by (seed, step, rank).
        """

    def groups(self, weight_decay: float) -> list[dict[str, Any]] | None:
        """Return the optimizer's parameter groups, where `lr_scale` multiplies a group's learning rate; None:
        matrices decay and the rest does not.
        """
        return None

    @abstractmethod
    def scorer(self, device: torch.device, decoding: dict[str, Any]) -> Scorer | None:
        """Return what scores the network between epochs, if that is wanted; every rank comes to the same."""

    def painter(self, run: Path, device: torch.device, decoding: dict[str, Any]) -> Painter | None:
        """Return what paints pictures, if anything does."""
        return None

    def paints_after(self, steps: int) -> frozenset[int]:
        """Return the steps of a run of `steps` after which the painter paints."""
        return frozenset()

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what config.json says of the network beside the resolved."""

    @abstractmethod
    def opening(self) -> list[tuple[str, str]]:
        """Return what is to be said of it when the run begins: (subject, text) lines."""


def parameter_count(model: nn.Module) -> int:
    """Return how many numbers a network learns, whole even where stage 3 has left a part of each here."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
