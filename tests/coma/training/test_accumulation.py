"""--micro-batch-size changes the memory of a step and not what the step does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import lines, same_weights, small, weights_of

from coma.training import FinetuneConfig, finetune, pretrain

SAME = 1e-5
"""Greatest difference of losses: sums are taken in another order."""
FIGURES = ("step", "epoch", "samples", "lr", "batch_digest", "image_size")


def assert_same_course(whole: Path, parts: Path, devices: int = 1) -> None:
    one, other = ([line for line in lines(run) if "loss" in line] for run in (whole, parts))
    assert len(one) == len(other) > 2
    for expected, line in zip(one, other, strict=True):
        assert {name: line[name] for name in FIGURES} == {name: expected[name] for name in FIGURES}
        assert line["loss"] == pytest.approx(expected["loss"], abs=SAME)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        # speeds are of the whole batch and not of its last part; model_tflops is a device's
        assert line["images_per_s"] * line["step_s"] == pytest.approx(expected["images_per_s"] * expected["step_s"])
        rates = [each["model_tflops"] * each["step_s"] for each in (line, expected)]
        assert devices * rates[0] == pytest.approx(rates[1])


def resolved_of(run: Path) -> dict[str, Any]:
    resolved: dict[str, Any] = json.loads((run / "config.json").read_text())["resolved"]
    return resolved


OTHER_STAGES = [pytest.param(f"zero{stage}", marks=pytest.mark.slow) for stage in range(3)]


@pytest.mark.parametrize("stage", [*OTHER_STAGES, "zero3"])
def test_four_parts_have_the_losses_of_one_batch(data: Path, tmp_path: Path, stage: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pretrain(small(data, whole, batch_size=8, ds_config=stage))
    pretrain(small(data, parts, batch_size=8, ds_config=stage, micro_batch_size=2))
    assert_same_course(whole, parts)
    assert (resolved_of(parts)["micro_batch_size"], resolved_of(parts)["accumulation"]) == (2, 4)
    assert resolved_of(whole)["accumulation"] == 1
    for name, value in weights_of(parts).items():
        assert (value - weights_of(whole)[name]).abs().max() < 1e-4, name


@pytest.mark.slow
def test_so_have_four_parts_on_each_of_two_processes(data: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pretrain(small(data, whole, batch_size=8, ds_config="zero2"))
    pretrain(small(data, parts, batch_size=8, ds_config="zero2", micro_batch_size=1, devices=2))
    assert_same_course(whole, parts, devices=2)
    assert (resolved_of(parts)["world_size"], resolved_of(parts)["accumulation"]) == (2, 4)


@pytest.mark.slow
def test_a_run_goes_on_in_other_parts_and_auto_takes_the_whole_where_it_fits(data: Path, tmp_path: Path) -> None:
    """The micro-batch is no part of what a run is; that of `auto` is written down as it was found."""
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    pretrain(small(data, whole, batch_size=8))
    pretrain(small(data, changed, batch_size=8, micro_batch_size="auto", stop_after=2))
    assert resolved_of(changed)["micro_batch_size"] == 8
    assert resolved_of(changed)["deepspeed"]["train_micro_batch_size_per_gpu"] == 8
    pretrain(small(data, changed, batch_size=8, micro_batch_size=4))
    assert resolved_of(changed)["micro_batch_size"] == 4
    assert_same_course(whole, changed)


@pytest.mark.slow
def test_auto_is_to_the_bit_the_run_without_it(data: Path, tmp_path: Path) -> None:
    pretrain(small(data, tmp_path / "plain"))
    pretrain(small(data, tmp_path / "auto", micro_batch_size="auto"))
    assert same_weights(tmp_path / "plain", tmp_path / "auto")


@pytest.mark.slow
def test_fine_tuning_mixes_over_the_whole_batch(data: Path, tmp_path: Path) -> None:
    """Pairs, their shares and smoothed labels are drawn before the batch is cut up, the average is taken once a step;
    only dropped paths are drawn in each part.
    """
    pretrain(small(data, tmp_path / "source", steps=1))
    for name, parts in (("whole", None), ("parts", 2)):
        config = FinetuneConfig(
            source=tmp_path / "source",
            data=data,
            out=tmp_path / name,
            steps=4,
            batch_size=8,
            micro_batch_size=parts,
            workers=1,
            ema_decay=0.5,
            drop_path=0.0,
        )
        finetune(config)
    assert_same_course(tmp_path / "whole", tmp_path / "parts")
    one, other = (weights_of(tmp_path / name, "average") for name in ("whole", "parts"))
    for name, value in other.items():
        assert (value - one[name]).abs().max() < 1e-4, name
