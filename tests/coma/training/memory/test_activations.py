"""Activations that are measured without computing them are those of the real network."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coma.measure import kept_bytes
from coma.model.autoencoder import MaskedAutoencoder
from coma.model.classifier import Classifier
from coma.runs.read import build_model
from coma.training.memory.activations import measure_activations


def autoencoder(model: str, method: str, stages: tuple[int, ...] | None = ()) -> Callable[[], MaskedAutoencoder]:
    views = 1 if method == "mae" else 2
    config = {"model": model, "method": method, "image_size": 64, "views": views, "patch_size": 4}

    def build() -> MaskedAutoencoder:
        network = build_model(config)
        network.checkpoint_stages(stages)
        return network

    return build


def example(images: int, units: int) -> tuple[Tensor, ...]:
    return torch.zeros(images, 3, 64, 64), torch.arange(units).repeat(images, 1)


@pytest.mark.parametrize("stages", [(), (1, 2), None])
@pytest.mark.parametrize(("model", "method"), [("dyvit_nano", "coma"), ("dyvit_tiny", "independent")])
def test_a_dyvit_keeps_what_was_foreseen(model: str, method: str, stages: tuple[int, ...] | None) -> None:
    build = autoencoder(model, method, stages)
    network = build()
    inputs = example(4, network.units)
    expected = kept_bytes(network, lambda: network(*inputs)) / 4
    found = measure_activations(build, lambda images: example(images, network.units), torch.float32, backward=True)
    assert found.kept == pytest.approx(expected, rel=0.03, abs=20_000)  # a few tables
    assert found.peak > found.kept


def test_a_vit_too_and_half_precision_takes_half() -> None:
    build = autoencoder("vit_tiny_patch16_224", "mae")
    network = build()
    inputs = example(4, network.units)
    expected = kept_bytes(network, lambda: network(*inputs)) / 4
    found, half = (
        measure_activations(build, lambda images: example(images, network.units), dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert found.kept == pytest.approx(expected, rel=0.03)
    assert half.kept == pytest.approx(found.kept / 2, rel=0.05)


def test_a_classifier_too_and_nothing_is_drawn() -> None:
    def build() -> nn.Module:
        return Classifier("dyvit_nano", 10, img_size=64, patch_size=4, drop_path_rate=0.5)

    network = build()
    inputs = (torch.zeros(4, 3, 64, 64), torch.zeros(4, 10))
    expected = kept_bytes(network, lambda: network(*inputs)) / 4
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index, union-attr]
    found = measure_activations(
        build, lambda images: (torch.zeros(images, 3, 64, 64), torch.zeros(images, 10)), torch.float32, backward=True
    )
    assert found.kept == pytest.approx(expected, rel=0.03)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]  # type: ignore[index, union-attr]
