"""The smallest runs that go the whole way, and what to compare of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from coma.runs.lines import read_lines
from coma.runs.names import METRICS_NAME
from coma.runs.read import latest_checkpoint
from coma.training import PretrainConfig


def small(data: Path, out: Path, **fields: Any) -> PretrainConfig:
    """Four steps of four images of 32 px: seconds."""
    given = {"steps": 4, "batch_size": 4, "workers": 1, **fields}
    return PretrainConfig(data=data, out=out, model="dyvit_nano", image_size=32, patch_size=2, **given)


def lines(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run."""
    return read_lines(run / METRICS_NAME)


def course(run: Path) -> list[tuple[int, float, float, float, str]]:
    """What must be equal, to the last bit, in two runs that are the same."""
    keys = ("step", "loss", "lr", "grad_norm", "batch_digest")
    return [tuple(line[key] for key in keys) for line in lines(run) if "loss" in line]  # type: ignore[misc]


def weights_of(run: Path, name: str = "weights") -> dict[str, Tensor]:
    """A file of tensors in a run's newest checkpoint."""
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    return load_file(checkpoint / f"{name}.safetensors")


def same_weights(one: Path, other: Path, name: str = "weights") -> bool:
    """Whether two runs ended with the same network, to the last bit."""
    weights, expected = weights_of(one, name), weights_of(other, name)
    return weights.keys() == expected.keys() and all(
        torch.equal(value, expected[key]) for key, value in weights.items()
    )
