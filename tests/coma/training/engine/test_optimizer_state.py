"""Adam's state goes from any stage to any other, each tensor with a step counter and a weight decay of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from toy_engine import Toy, ds_config, engine_of, inputs, skip_without

from coma.errors import ComaError
from coma.training.engine.engine import (
    dispose,
    full_weights,
    loss_scale,
    optimizer_step,
    parameter_groups,
    restore_loss_scale,
    set_learning_rate,
    set_weights,
)
from coma.training.engine.optimizer_state import optimizer_state, partitions, restore_optimizer
from coma.training.processes.world import joined

RATE = 0.5
"""With a weight decay of 0.05 it takes 2.5% off the matrices in a step, and must take nothing off the rest."""


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with joined(None):
        yield


def train(engine: Any, seeds: range) -> None:
    for seed in seeds:
        set_learning_rate(engine, RATE)
        engine.backward(engine(inputs(seed)))
        optimizer_step(engine)


def adamw(model: torch.nn.Module, steps: int) -> dict[str, Tensor]:
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=RATE, betas=(0.9, 0.95))
    for seed in range(steps):
        optimizer.zero_grad()
        model(inputs(seed)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.state_dict()


@pytest.mark.gpu_too
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("zero0", "zero1"),
        ("zero1", "zero3"),
        ("zero3", "zero3"),
        ("zero3", "zero2_offload"),
        ("zero2", "zero0"),
    ],
)
def test_another_stage_goes_on_as_adamw_would(tmp_path: Path, before: str, after: str) -> None:
    torch.manual_seed(0)
    model = Toy()
    expected = adamw(copy.deepcopy(model), 6)
    engine = engine_of(model, ds_config(before))
    train(engine, range(3))
    weights, path = full_weights(engine), tmp_path / "state"
    save_file(optimizer_state(engine), path)
    dispose(engine)

    engine = engine_of(Toy(), ds_config(after))
    set_weights(engine, weights)
    restore_optimizer(engine, weights, [path])
    decays = {
        name: group["weight_decay"]
        for group in engine.optimizer.param_groups
        for partition in partitions(engine)
        for name in [partition.name]
        if any(partition.flat is tensor for tensor in group["params"])
    }
    if not after.startswith("zero3"):  # which shows one group's tensors at a time
        assert decays == {name: 0.05 * (name == "linear.weight") for name, _ in Toy().named_parameters()}
    counters = [state["step"] for state in engine.basic_optimizer.state.values()]
    assert len({counter.data_ptr() for counter in counters}) == len(counters)
    train(engine, range(3, 6))
    assert {float(counter) for counter in counters} == {6.0}
    for name, value in full_weights(engine).items():
        torch.testing.assert_close(value, expected[name], msg=name)
    dispose(engine)


@pytest.mark.parametrize("stage", ["zero0-bf16", "zero1-bf16", "zero3-bf16", "zero2-fp16"])
def test_in_half_precision_the_same_stage_goes_on_to_the_bit(tmp_path: Path, stage: str) -> None:
    skip_without(stage.partition("-")[2])
    engine = engine_of(Toy(), ds_config(stage))
    train(engine, range(2))
    weights, scale, path = full_weights(engine), loss_scale(engine), tmp_path / "state"
    save_file(optimizer_state(engine), path)
    train(engine, range(2, 5))
    expected, expected_scale = full_weights(engine), loss_scale(engine)
    dispose(engine)
    assert bool(scale) == ("fp16" in stage)
    assert scale != expected_scale or not scale
    engine = engine_of(Toy(), ds_config(stage))
    set_weights(engine, weights)
    restore_optimizer(engine, weights, [path])
    restore_loss_scale(engine, scale)
    train(engine, range(2, 5))
    assert all(torch.equal(value, expected[name]) for name, value in full_weights(engine).items())
    assert loss_scale(engine) == expected_scale
    dispose(engine)


def test_partitions_of_other_sizes_are_put_together_and_a_gap_is_an_error(tmp_path: Path) -> None:
    engine = engine_of(Toy(), ds_config("zero1"))
    train(engine, range(1))
    state, weights = optimizer_state(engine), full_weights(engine)
    whole = state.pop("exp_avg/linear.weight@0")
    assert whole.shape == (12,)
    first, second = tmp_path / "first", tmp_path / "second"
    save_file({**state, "exp_avg/linear.weight@7": whole[7:].clone()}, first)
    save_file({"exp_avg/linear.weight@0": whole[:7].clone()}, second)
    engine.basic_optimizer.state.clear()
    restore_optimizer(engine, weights, [first, second])
    assert torch.equal(optimizer_state(engine)["exp_avg/linear.weight@0"], whole)
    with pytest.raises(ComaError, match=r"exp_avg of linear.weight up to element 0 only"):
        restore_optimizer(engine, weights, [first])
    dispose(engine)
