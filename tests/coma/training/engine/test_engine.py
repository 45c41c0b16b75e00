"""The engine on a network of a few weights, at every stage."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator

import deepspeed
import pytest
import torch
from toy_engine import Toy, engine_of, inputs, resolved_run, skip_without

from coma.errors import UsageError
from coma.model.build import build
from coma.training.config.ds_config import check_ds_config, read_ds_config
from coma.training.engine.engine import (
    check_half_precision,
    dispose,
    full_weights,
    optimizer_step,
    parameter_groups,
    set_learning_rate,
)
from coma.training.engine.optimizer_state import optimizer_state
from coma.training.processes.world import joined
from coma.training.tasks.task import parameter_count


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    with joined(None):
        yield


def test_matrices_decay_and_nothing_else() -> None:
    decaying, kept = parameter_groups(Toy(), 0.05)
    assert [tuple(parameter.shape) for parameter in decaying["params"]] == [(3, 4)]
    assert decaying["weight_decay"] == 0.05
    assert sorted(tuple(parameter.shape) for parameter in kept["params"]) == [(2, 4), (3,), (4,), (4,)]
    assert kept["weight_decay"] == 0.0


@pytest.mark.gpu_too
@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "zero3_nvme"])
def test_a_step_is_adamws_and_a_gradient_that_is_not_finite_changes_nothing(alone: None, name: str) -> None:
    torch.manual_seed(0)
    model = Toy()
    reference = copy.deepcopy(model)
    adamw = torch.optim.AdamW(parameter_groups(reference, 0.05), betas=(0.9, 0.95))
    engine = engine_of(model, read_ds_config(name))
    for seed, lr in ((0, 0.1), (1, float("nan")), (2, 0.01)):
        spoilt = math.isnan(lr)
        set_learning_rate(engine, 1.0 if spoilt else lr)
        engine.backward(engine(inputs(seed) * lr if spoilt else inputs(seed)))
        norm, applied = optimizer_step(engine)
        assert applied != spoilt
        assert math.isfinite(norm) != spoilt
        if spoilt:
            continue
        for group in adamw.param_groups:
            group["lr"] = lr
        adamw.zero_grad()
        reference(inputs(seed)).backward()
        gradients = [parameter.grad for parameter in reference.parameters() if parameter.grad is not None]
        assert norm == pytest.approx(float(torch.nn.utils.get_total_norm(gradients)), rel=1e-5)
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        adamw.step()
    weights = full_weights(engine)
    assert parameter_count(engine.module) == parameter_count(reference)
    dispose(engine)
    expected = reference.state_dict()
    assert weights.keys() == expected.keys()
    for key, value in weights.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[key])


@pytest.mark.gpu_too
@pytest.mark.parametrize(
    ("stage", "half"),
    [(0, "bf16"), (1, "bf16"), (2, "bf16"), (3, "bf16"), (1, "fp16"), (2, "fp16"), (3, "fp16")],
)
def test_in_half_precision_the_float32_copy_takes_adamws_step(alone: None, stage: int, half: str) -> None:
    skip_without(half)
    torch.manual_seed(0)
    model = Toy()
    reference = copy.deepcopy(model)
    adamw = torch.optim.AdamW(parameter_groups(reference, 0.05), lr=1e-3, betas=(0.9, 0.95))
    scale = {"initial_scale_power": 8} if half == "fp16" else {}
    content = {"zero_optimization": {"stage": stage}, half: {"enabled": True, **scale}}
    engine = engine_of(model, check_ds_config(content, "f"), clipping=0.1)
    begun = full_weights(engine)["linear.weight"]
    assert (begun - reference.linear.weight).norm() < 0.01 * begun.norm()
    set_learning_rate(engine, 1e-3)
    engine.backward(engine(inputs()))
    norm, applied = optimizer_step(engine)
    assert applied
    reference(inputs()).backward()
    expected = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.1)
    assert norm == pytest.approx(float(expected), rel=0.02)
    before = reference.linear.weight.detach().clone()
    adamw.step()
    weights = full_weights(engine)["linear.weight"]
    moments = [value for key, value in optimizer_state(engine).items() if key.startswith("exp_avg_sq/linear.w")]
    counters = {float(value) for key, value in optimizer_state(engine).items() if key.startswith("step/")}
    dispose(engine)
    assert weights.dtype == torch.float32
    assert not torch.equal(weights, weights.bfloat16().float())
    assert counters == {1.0}
    moved, should = weights - begun, reference.linear.weight.detach() - before
    assert (moved - should).norm() < 0.1 * should.norm()
    (whole,) = (state["exp_avg_sq"] for p, state in adamw.state.items() if p is reference.linear.weight)
    assert sum(float(part.sum()) for part in moments) == pytest.approx(float(whole.sum()), rel=0.05)


@pytest.mark.gpu_too
@pytest.mark.parametrize("stage", [0, 2])
def test_accumulation_averages_micro_batches(alone: None, stage: int) -> None:
    norms = []
    for accumulation in (1, 2):
        torch.manual_seed(0)
        engine = engine_of(Toy(), check_ds_config({"zero_optimization": {"stage": stage}}, "f"), accumulation)
        for number, part in enumerate(inputs().chunk(accumulation)):
            if number:
                engine.step()
            engine.backward(engine(part))
        norms.append(optimizer_step(engine)[0])
        dispose(engine)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_stage_3_leaves_torch_as_it_was(alone: None) -> None:
    linear = torch.nn.functional.linear
    engine = engine_of(Toy(), read_ds_config("zero3"))
    assert torch.nn.functional.linear is not linear
    dispose(engine)
    assert torch.nn.functional.linear is linear


def test_half_precision_that_the_device_does_not_have_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed.get_accelerator(), "is_fp16_supported", lambda: False)
    with pytest.raises(UsageError, match=r"zero2.* asks for fp16, which this cpu does not compute in"):
        check_half_precision(resolved_run("zero2", device="cpu", fp16={"enabled": True}))
    check_half_precision(resolved_run("zero2", device="cpu"))
    asked = dataclasses.replace(resolved_run("zero2", device="cpu"), precision="fp16")
    with pytest.raises(UsageError, match=r"^--precision fp16 asks for fp16.* this cpu does not .*use --precision fp32"):
        check_half_precision(asked)


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "bf16"])
@pytest.mark.parametrize("stage", ["zero0", "zero1", "zero2", "zero3"])
def test_recomputed_stages_change_no_bit_of_a_run(alone: None, stage: str, precision: str) -> None:
    ends = []
    for stages in ((), (1, 2), None):
        torch.manual_seed(0)
        model = build("dyvit_nano", image_size=96, drop_path_rate=0.5)
        model.checkpoint_stages(stages)
        content = {**read_ds_config(stage).content, "bf16": {"enabled": precision == "bf16"}}
        engine = engine_of(model, check_ds_config(content, "f"))
        images, units = torch.randn(2, 3, 96, 96), torch.rand(2, 9).argsort(dim=1)
        figures = []
        for number in range(3):
            torch.manual_seed(number)
            set_learning_rate(engine, 1e-3)
            loss = engine(images, units)
            engine.backward(loss)
            figures.append((float(loss.detach()), optimizer_step(engine)[0]))
        ends.append((figures, full_weights(engine)))
        dispose(engine)
    (figures, weights), *others = ends
    assert len(set(figures)) == 3
    for other_figures, other_weights in others:
        assert other_figures == figures
        assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
