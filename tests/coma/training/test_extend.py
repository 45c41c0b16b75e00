"""Runs that are extended: what their steps are, however they are stopped on the way."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from small_runs import course, lines, same_weights, small

from coma.errors import UsageError
from coma.pictures.step import read_step
from coma.training import PretrainConfig, pretrain
from coma.training.config.schedule import learning_rate


def extended(config: PretrainConfig, steps: int, **options: Any) -> PretrainConfig:
    return dataclasses.replace(config, steps=steps, extend=True, **options)


def steps_of(run: Path) -> list[int]:
    return [line["step"] for line in lines(run) if "loss" in line]


def test_a_finished_run_goes_on_with_a_schedule_of_its_own(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, warm = tmp_path / "run", {"warmup_epochs": 1 / 6}  # a step
    begun = small(data, run, steps=3, evaluate_every=1, **warm)
    pretrain(begun)
    with caplog.at_level(logging.INFO, "coma"):
        result = pretrain(extended(begun, 7))
    assert "extended at step 3 to 7 steps: the rate, " in caplog.text
    assert "begins anew: 1 steps of warm-up, then cosine" in caplog.text
    assert (result["steps"], result["finished"]) == (7, True)
    assert steps_of(run) == list(range(1, 8))
    peak = 6e-4 * 4 / 256
    rates = [learning_rate(step, peak=peak, warmup_steps=1, steps=3) for step in (1, 2, 3)]
    rates += [learning_rate(step, peak=peak, warmup_steps=1, steps=4) for step in (1, 2, 3, 4)]
    assert [line["lr"] for line in lines(run) if "loss" in line] == rates
    assert [line["step"] for line in lines(run) if "loss" not in line] == [3, 6, 7]  # an epoch has six steps
    assert "7</b>" in (run / "report.html").read_text()

    again = pretrain(dataclasses.replace(begun, steps=7))
    assert again["finished"]
    assert steps_of(run) == list(range(1, 8))
    with pytest.raises(UsageError, match=r"--extend takes more steps than .* which are 7, and these are 5"):
        pretrain(extended(begun, 5))


@pytest.mark.slow
@pytest.mark.parametrize("flag", [True, False])
def test_stopped_on_the_way_and_extended_twice_is_to_the_bit_never_stopped(
    data: Path, tmp_path: Path, flag: bool
) -> None:
    whole, stopped = small(data, tmp_path / "whole", steps=2), small(data, tmp_path / "stopped", steps=2)
    for steps in (2, 6, 8):
        pretrain(dataclasses.replace(whole, steps=steps, extend=steps > 2))
    pretrain(dataclasses.replace(stopped, stop_after=1))
    pretrain(stopped)
    pretrain(extended(stopped, 6, stop_after=2))
    pretrain(dataclasses.replace(stopped, steps=6, extend=flag))  # the same command, or without --extend
    pretrain(extended(stopped, 8))
    assert steps_of(whole.out or Path()) == list(range(1, 9))
    assert course(tmp_path / "stopped") == course(tmp_path / "whole")
    assert same_weights(tmp_path / "stopped", tmp_path / "whole")
    segments = [json.loads((run / "config.json").read_text())["resolved"]["segments"] for run in tmp_path.iterdir()]
    assert segments[0] == segments[1]
    assert [segment["after"] for segment in segments[0]] == [0, 2, 6]


@pytest.mark.slow
def test_a_constant_rate_goes_on_as_if_it_had_been_meant_to(data: Path, tmp_path: Path) -> None:
    constant = {"schedule": "constant", "warmup_epochs": 1 / 6, "cooldown_epochs": 1 / 3}  # one step, two steps
    pretrain(small(data, tmp_path / "longer", steps=7, **constant))
    config = small(data, tmp_path / "run", steps=4, save_every=1, **constant)
    pretrain(dataclasses.replace(config, stop_after=2))
    pretrain(extended(config, 7))
    assert course(tmp_path / "run") == course(tmp_path / "longer")
    assert same_weights(tmp_path / "run", tmp_path / "longer")


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_steps_of_the_old_schedule(data: Path, tmp_path: Path) -> None:
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    for run in (whole, damaged):
        config = small(data, run, steps=2, save_every=1)
        pretrain(config)
        if run == damaged:
            (run / "checkpoints/step-000002/optimizer-00000.safetensors").unlink()
        pretrain(extended(config, 4))
    assert course(damaged) == course(whole)
    assert same_weights(damaged, whole)


@pytest.mark.slow
def test_crops_grow_as_was_planned_and_every_step_can_be_looked_at(data: Path, tmp_path: Path) -> None:
    config = PretrainConfig(
        data=data, out=tmp_path, model="dyvit_nano", patch_size=2, image_size=64, start_size=32, steps=4,
        batch_size=4, workers=1,
    )  # fmt: skip
    pretrain(dataclasses.replace(config, stop_after=2))
    pretrain(extended(config, 6, stop_after=1))
    pretrain(extended(config, 6))
    sides = [32, 48, 48, 64, 64, 64]
    assert [line["image_size"] for line in lines(tmp_path)] == sides
    contents = [read_step(tmp_path, step) for step in range(1, 7)]
    assert [each.image_size for each in contents] == sides
    assert all(each.matches for each in contents)


@pytest.mark.slow
def test_processes_agree_on_what_becomes_of_the_rate(data: Path, tmp_path: Path) -> None:
    config = small(data, tmp_path / "one", steps=1)
    pretrain(config)
    pretrain(extended(config, 3, devices=2))
    assert steps_of(tmp_path / "one") == [1, 2, 3]
    segments = json.loads((tmp_path / "one/config.json").read_text())["resolved"]["segments"]
    assert [segment["after"] for segment in segments] == [0, 1]
