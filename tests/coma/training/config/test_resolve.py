from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coma.errors import UsageError
from coma.training.config.ds_config import check_ds_config, read_ds_config
from coma.training.config.options import PretrainConfig
from coma.training.config.resolve import ResolvedRun, default_batch, divisors, resolve


def resolved(
    content: dict[str, Any] | None = None, *, samples: int = 1000, world_size: int = 1, **fields: Any
) -> ResolvedRun:
    machine = {"device": fields.pop("device", "cpu"), "has_bf16": fields.pop("has_bf16", False)}
    return resolve(
        PretrainConfig(**fields),
        check_ds_config(content or {}, "mine.json"),
        data="data",
        fingerprint="f",
        samples_per_epoch=samples,
        world_size=world_size,
        **machine,
    )


def test_epochs_become_steps_and_steps_epochs() -> None:
    assert resolved(epochs=3, batch_size=50).steps == 60
    assert resolved(steps=30, batch_size=50).epochs == pytest.approx(1.5)
    assert resolved(batch_size=50).steps == 2000
    assert resolved(epochs=0.001, batch_size=50).steps == 1


def test_an_epoch_ends_in_the_step_that_takes_its_last_sample() -> None:
    run = resolved(samples=1000, steps=400, batch_size=64)  # 15.6 steps an epoch
    assert [step for step in range(1, 66) if run.ends_epochs(step, 1)] == [16, 32, 47, 63]
    assert [step for step in range(1, 66) if run.ends_epochs(step, 2)] == [32, 63]
    assert not any(run.ends_epochs(step, None) for step in range(1, 66))


def test_warm_up_is_a_twentieth_or_as_told() -> None:
    assert resolved(steps=400, batch_size=50).warmup_steps == 20
    assert resolved(steps=400, batch_size=50, warmup_epochs=2).warmup_steps == 40
    assert resolved(steps=400, batch_size=50, warmup_epochs=0).warmup_steps == 0
    with pytest.raises(UsageError, match="--warmup-epochs 20 is 400 steps"):
        resolved(steps=400, batch_size=50, warmup_epochs=20)


@given(samples=st.integers(1, 2_000_000), world_size=st.integers(1, 16), device=st.sampled_from(["cpu", "cuda"]))
def test_the_default_batch_divides_and_leaves_steps(samples: int, world_size: int, device: str) -> None:
    batch = default_batch(samples, world_size, device)
    assert batch % world_size == 0
    assert batch < min(max(1, samples / 8), 256) + world_size
    if device == "cpu":
        assert batch < 32 + world_size


@pytest.mark.parametrize(
    ("content", "fields", "expected"),
    [
        ({}, {"batch_size": 16}, (16, 16, 1)),
        ({"train_micro_batch_size_per_gpu": 4}, {"batch_size": 16}, (16, 4, 4)),
        ({"train_micro_batch_size_per_gpu": 4}, {"batch_size": 16, "world_size": 2}, (16, 4, 2)),
        ({"gradient_accumulation_steps": 8}, {"batch_size": 16}, (16, 2, 8)),
        ({"train_batch_size": 16}, {}, (16, 16, 1)),
        ({"train_batch_size": 16}, {"batch_size": 16}, (16, 16, 1)),
        (
            {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2},
            {"world_size": 2},
            (16, 4, 2),
        ),
        ({}, {"batch_size": 16, "micro_batch_size": 4, "world_size": 2}, (16, 4, 2)),
        ({}, {"batch_size": 16, "micro_batch_size": "auto"}, (16, 16, 1)),  # until it is found
        ({"train_micro_batch_size_per_gpu": 4}, {"batch_size": 16, "micro_batch_size": 4}, (16, 4, 4)),
        ({"gradient_accumulation_steps": 8}, {"batch_size": 16, "micro_batch_size": 2}, (16, 2, 8)),
    ],
)
def test_batch_sizes_multiply_up(content: dict[str, Any], fields: dict[str, Any], expected: tuple[int, ...]) -> None:
    run = resolved(content, **fields)
    assert (run.batch_size, run.micro_batch_size, run.accumulation) == expected
    assert run.batch_size == run.micro_batch_size * run.accumulation * run.world_size
    assert run.deepspeed.batch_size == run.batch_size


@pytest.mark.parametrize(
    ("content", "fields", "named"),
    [
        ({"train_batch_size": 64}, {"batch_size": 16}, "--batch-size 16 contradicts 'train_batch_size': 64"),
        ({"train_micro_batch_size_per_gpu": 3}, {"batch_size": 16}, "'train_micro_batch_size_per_gpu': 3"),
        (
            {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2},
            {"batch_size": 16},
            "is not 4 x 2",
        ),
        ({"gradient_accumulation_steps": 3}, {"batch_size": 16}, "'gradient_accumulation_steps': 3"),
        ({}, {"batch_size": 15, "world_size": 2}, "2 processes: use --batch-size 16"),
        ({}, {"batch_size": 24, "micro_batch_size": 5}, "--micro-batch-size 5 .* 24 images a device .*-size 4$"),
        ({}, {"batch_size": 24, "micro_batch_size": 99}, "--micro-batch-size 99 .* use --micro-batch-size 24$"),
        ({}, {"batch_size": 24, "micro_batch_size": 8, "world_size": 2}, "the 12 images a device .*-size 6$"),
        (
            {"train_micro_batch_size_per_gpu": 4},
            {"batch_size": 16, "micro_batch_size": 2},
            "size 2 contradicts 'train_micro_batch_size_per_gpu': 4 in mine.json: use --micro-batch-size 4, or delete",
        ),
        (
            {"gradient_accumulation_steps": 2},
            {"batch_size": 16, "micro_batch_size": "auto"},
            "size auto contradicts 'gradient_accumulation_steps': 2 in mine.json: use --micro-batch-size 8, or delete",
        ),
    ],
)
def test_batch_sizes_that_contradict_each_other_are_refused(
    content: dict[str, Any], fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        resolved(content, **fields)


def test_a_run_is_cut_up_anew() -> None:
    run = resolved(batch_size=24, world_size=2).in_micro_batches_of(4)
    assert (run.batch_size, run.images_per_device, run.micro_batch_size, run.accumulation) == (24, 12, 4, 3)
    assert run.deepspeed.to_json()["train_micro_batch_size_per_gpu"] == 4
    assert run.deepspeed.to_json()["gradient_accumulation_steps"] == 3


@given(number=st.integers(1, 10_000))
def test_divisors(number: int) -> None:
    assert divisors(number) == [each for each in range(1, number + 1) if number % each == 0]


def test_precision_is_the_hardwares_unless_the_file_says_otherwise() -> None:
    assert resolved(device="cuda", has_bf16=True).precision == "bf16"
    assert resolved(device="cuda", has_bf16=True).deepspeed.to_json()["bf16"] == {"enabled": True}
    assert resolved().precision == "fp32"
    assert resolved({"bf16": {"enabled": False}}, device="cuda", has_bf16=True).precision == "fp32"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "zero3_nvme"])
def test_precision_is_chosen_on_the_command_line(name: str, precision: str) -> None:
    facts: dict[str, Any] = {"data": "d", "fingerprint": "f", "samples_per_epoch": 99, "world_size": 1}
    config = PretrainConfig(precision=precision)
    run = resolve(config, read_ds_config(name), **facts, device="cuda", has_bf16=precision == "fp32")
    assert run.precision == precision
    content = run.deepspeed.to_json()
    assert {half for half in ("bf16", "fp16") if content.get(half, {}).get("enabled")} == {precision} - {"fp32"}
    # The run is the one that the same precision in a file makes.
    half = {"bf16": {"enabled": False}} if precision == "fp32" else {precision: {"enabled": True}}
    in_file = check_ds_config({**read_ds_config(name).content, **half}, "mine.json")
    same = resolve(PretrainConfig(), in_file, **facts, device="cuda", has_bf16=False)
    assert same.precision == precision
    assert same.deepspeed.identity() == run.deepspeed.identity()


def test_precision_in_a_file_and_on_the_command_line_must_agree() -> None:
    assert resolved({"bf16": {"enabled": True}}, precision="bf16").precision == "bf16"
    assert resolved({"bf16": "auto", "fp16": {"enabled": "auto"}}, precision="bf16").precision == "bf16"
    for content, precision, said in (
        ({"bf16": {"enabled": True}}, "fp32", "--precision fp32 contradicts 'bf16' in mine.json, which is bf16"),
        ({"bf16": {"enabled": False}, "fp16": {"enabled": False}}, "bf16", "'bf16' and 'fp16' in mine.json.* fp32"),
        ({"torch_autocast": {"enabled": True}}, "bf16", "'torch_autocast' in mine.json, which is bfloat16 autocast"),
        ({}, "fp16", "--precision fp16 trains wrongly at ZeRO stage 0 .mine.json.: use --ds-config zero1, or bf16"),
    ):
        with pytest.raises(UsageError, match=said):
            resolved(content, precision=precision)


def test_compile_is_refused_where_it_does_not_work() -> None:
    config = PretrainConfig(steps=1, batch_size=1, compile=True)
    facts: dict[str, Any] = {"data": "d", "fingerprint": "f", "samples_per_epoch": 9, "world_size": 1}
    assert resolve(config, read_ds_config("zero2"), **facts, device="cpu", has_bf16=False).stage == 2
    with pytest.raises(UsageError, match="--compile"):
        resolve(config, read_ds_config("zero3"), **facts, device="cpu", has_bf16=False)


def test_decoding_on_a_gpu_needs_one() -> None:
    assert resolved(decode="gpu", device="cuda").device == "cuda"
    assert resolved(decode="cpu", device="cuda").device == "cuda"
    with pytest.raises(UsageError, match="--decode gpu needs a GPU"):
        resolved(decode="gpu", device="cpu")
    with pytest.raises(UsageError, match="--decode is 'fast'; it must be auto or cpu or gpu"):
        resolved(decode="fast")
