"""The exponential moving average (EMA) of the weights is the formula's at every stage, and goes on in another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import DEVICE
from safetensors.torch import save_file
from torch import Tensor
from toy_engine import Toy, ds_config, engine_of, inputs

from coma.training.engine.ema import ExponentialMovingAverage
from coma.training.engine.engine import dispose, full_weights, optimizer_step, set_learning_rate, set_weights
from coma.training.engine.optimizer_state import optimizer_state, restore_optimizer
from coma.training.processes.world import Place, World, joined

WORLD = World(Place(0, 0, 1, "", 0), torch.device(DEVICE))
DECAY = 0.7


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with joined(None):
        yield


def groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Two layers, of which the lower one learns at a quarter of the rate."""
    low = [parameter for name, parameter in model.named_parameters() if not name.startswith("linear")]
    high = [parameter for name, parameter in model.named_parameters() if name.startswith("linear")]
    return [
        {"params": low, "weight_decay": 0.0, "lr_scale": 0.25},
        {"params": high, "weight_decay": 0.05, "lr_scale": 1.0},
    ]


def by_hand(steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights and their average after steps of torch's own AdamW."""
    torch.manual_seed(0)
    model = Toy()
    adamw = torch.optim.AdamW(groups(model), betas=(0.9, 0.95))
    average: dict[str, Tensor] = {}
    for step in range(1, steps + 1):
        for group in adamw.param_groups:
            group["lr"] = 0.1 * group["lr_scale"]
        adamw.zero_grad()
        model(inputs(step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        decay = min(DECAY, (1 + step) / (10 + step))
        now = {name: value.detach().clone() for name, value in model.state_dict().items()}
        average = {name: decay * average.get(name, now[name]) + (1 - decay) * now[name] for name in now}
    return now, average


def train(engine: Any, average: ExponentialMovingAverage, steps: range) -> None:
    for step in steps:
        set_learning_rate(engine, 0.1)
        engine.backward(engine(inputs(step)))
        _, applied = optimizer_step(engine)
        assert applied
        average.update(step)


@pytest.mark.gpu_too
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("zero0", "zero3"),
        ("zero1", "zero0"),
        ("zero2", "zero1"),
        ("zero3", "zero2_offload"),
        ("zero3_offload", "zero3"),
    ],
)
def test_it_is_the_formulas_and_goes_on_in_another_stage(tmp_path: Path, before: str, after: str) -> None:
    torch.manual_seed(0)
    model = Toy()
    engine = engine_of(model, ds_config(before), groups=groups(model))
    average = ExponentialMovingAverage(engine, DECAY)
    train(engine, average, range(1, 4))
    for value, expected in zip(
        (full_weights(engine), average.gather(full_weights(engine), WORLD)), by_hand(3), strict=True
    ):
        torch.testing.assert_close(value, expected)
    weights = full_weights(engine)
    save_file(optimizer_state(engine), tmp_path / "state")
    dispose(engine)

    other = Toy()
    engine = engine_of(other, ds_config(after), groups=groups(other))
    set_weights(engine, weights)
    restore_optimizer(engine, weights, [tmp_path / "state"])
    average = ExponentialMovingAverage(engine, DECAY)
    train(engine, average, range(4, 7))
    for value, expected in zip(
        (full_weights(engine), average.gather(full_weights(engine), WORLD)), by_hand(6), strict=True
    ):
        torch.testing.assert_close(value, expected)
    dispose(engine)


@pytest.mark.parametrize("stage", ["zero0-bf16", "zero1-bf16", "zero3-bf16"])
def test_in_half_precision_it_is_of_the_float32_weights(stage: str) -> None:
    torch.manual_seed(0)
    model = Toy()
    engine = engine_of(model, ds_config(stage), groups=groups(model))
    average = ExponentialMovingAverage(engine, DECAY)
    expected: dict[str, Tensor] = {}
    assert average.gather(full_weights(engine), WORLD).keys() == full_weights(engine).keys()  # of no step yet
    for step in range(1, 4):
        train(engine, average, range(step, step + 1))
        now, decay = full_weights(engine), min(DECAY, (1 + step) / (10 + step))
        expected = {name: decay * expected.get(name, now[name]) + (1 - decay) * now[name] for name in now}
    torch.testing.assert_close(average.gather(now, WORLD), expected)
    dispose(engine)
