"""The interface between the training loop and what it trains: pre-training is one task, fine-tuning another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from coma.evaluation.features import Features
from coma.pipeline import Batch, Preprocessing

Network = TypeVar("Network", bound=nn.Module)


class Previewer(Protocol):
    """Draws what a network does; on rank 0 only."""

    def preview(self, weights: dict[str, Tensor], step: int) -> Path | None:
        """Write the picture of the network with these weights, and return its path; None if it cannot be."""


class Scorer(Protocol):
    """Evaluates a network; on rank 0 only."""

    def score(self, weights: dict[str, Tensor], step: int, after_batch: Callable[[], None]) -> dict[str, Any]:
        """Return the line of metrics.jsonl for the network with these weights; `after_batch` is called regularly."""


@runtime_checkable
class SharedScorer(Scorer, Protocol):
    """Evaluates a network by features, of which every rank extracts a share."""

    def extract_share(
        self, weights: dict[str, Tensor], rank: int, world_size: int, after_batch: Callable[[], None]
    ) -> list[Features | None]:
        """Return a rank's share of the features of each split, None where it has none."""

    def together(self, shares: list[list[Features | None]]) -> None:
        """Take the shares of all ranks for the next `score`."""


class Task(ABC):
    """A network to train, and everything about it that the loop does not know."""

    model: nn.Module
    """Takes `inputs` and returns a loss; has the same initial weights on every rank."""
    preprocessing: Preprocessing
    """How images are normalised."""
    init_digest: str | None = None
    """A hash of the weights that the run starts from; None: random ones."""
    lacks_weights: bool = False
    """Whether `give_start` has to be called before the first step of a run that is not resumed."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average (EMA) of the weights, which is scored and exported in their place;
    0: none is kept."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Make another network of the same kind, for `full_weights` to be loaded into."""

    def give_start(self) -> None:  # noqa: B027
        """Load the weights that the run starts from, where that was put off as it seemed to be resumed."""

    def image_losses(self) -> Tensor | None:
        """Return the loss of each image [B] of the last forward pass; None for a task that takes one data set alone."""
        return None

    @property
    def scores_start(self) -> bool:
        """Whether to evaluate before the first step."""
        return False

    @abstractmethod
    def stream_options(self, samples: int) -> dict[str, Any]:
        """Return arguments for the `Stream` of a run that was to take `samples` samples when it began."""

    @abstractmethod
    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the arguments of `model`, each with one row per image.

        Random numbers are drawn from the global generators of torch, numpy and Python, which the loop seeds by
        (seed, step, rank).
        """

    @abstractmethod
    def example(self, images: int) -> tuple[Tensor, ...]:
        """Return arguments of `model` of the right shapes and types for so many images, at their largest."""

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]] | None:
        """Return the optimizer's parameter groups, in which `lr_scale` multiplies the group's learning rate.

        None: weight decay applies to matrices only.
        """
        return None

    @abstractmethod
    def scorer(self, device: torch.device, decoding: dict[str, Any]) -> Scorer | None:
        """Return what evaluates the network during training, if anything does; the same on every rank."""

    def previewer(self, run: Path, device: torch.device, decoding: dict[str, Any]) -> Previewer | None:
        """Return what draws previews, if anything does."""
        return None

    def preview_steps(self, steps: int) -> frozenset[int]:
        """Return the steps, of `steps` in all, after which a preview is drawn."""
        return frozenset()

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what config.json records of the network beside the resolved run."""

    @abstractmethod
    def describe(self) -> list[tuple[str, str]]:
        """Return (subject, text) lines for the console at the start of the run."""


@contextmanager
def network_with(build: Callable[[], Network], weights: dict[str, Tensor], device: torch.device) -> Iterator[Network]:
    """Build a second network with these weights, in eval mode, and leave the random generators as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        model = build()
        model.load_state_dict(weights)
        yield model.to(device).eval()


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters, counted whole where ZeRO stage 3 leaves a part of each on this rank."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
