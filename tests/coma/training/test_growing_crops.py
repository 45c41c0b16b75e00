"""A run whose crops grow: stopped across a change it goes on to the bit, and every step can be looked at."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from small_runs import course, lines, same_weights

from coma.errors import UsageError
from coma.pictures.step import read_step
from coma.pictures.step_sheet import network_images, step_sheet
from coma.pipeline import Stream
from coma.runs.read import build_model, read_config, training_stream
from coma.training import PretrainConfig, pretrain

SIDES = [32, 48, 48, 64]


def growing(data: Path, out: Path) -> PretrainConfig:
    return PretrainConfig(
        data=data,
        out=out,
        model="dyvit_nano",
        patch_size=2,
        image_size=64,
        start_size=32,
        steps=4,
        batch_size=4,
        workers=1,
    )


@pytest.mark.gpu_too
def test_a_run_that_grows_is_the_same_stopped_or_not_and_shows_its_steps(data: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    pretrain(growing(data, whole))
    assert [line["image_size"] for line in lines(whole)] == SIDES
    for stop_after in (1, None):  # what was read ahead is of the next size
        pretrain(dataclasses.replace(growing(data, stopped), stop_after=stop_after))
    assert course(stopped) == course(whole)
    assert same_weights(whole, stopped)

    config = read_config(whole)["config"]
    options = training_stream(build_model(config), config, samples=16)
    with Stream(data, batch_size=4, seed=0, workers=1, **options) as stream:
        for step, side in enumerate(SIDES, start=1):
            contents, batch = read_step(whole, step), next(stream)
            assert contents.matches
            assert (contents.image_size, contents.units) == (side, (side // 16) ** 2)
            assert contents.view_sizes == batch.view_sizes
            for row, units in zip(contents.rows, batch.units, strict=True):
                assert row.views == tuple(tuple(sorted(v.tolist())) for v in units.split(batch.view_sizes))
            for shown, trained_on in zip(network_images(contents, 4), batch.images, strict=True):
                assert shown is not None
                assert torch.equal(shown, trained_on)
            assert step_sheet(contents).width > 0


def test_a_start_that_does_not_fit_is_refused_before_anything_is_written(data: Path, elsewhere: Path) -> None:
    config = growing(data, Path("run"))
    for start_size, message in (
        (40, "start size 40 is no multiple of the mask unit's 16 pixels"),
        (16, r"start size 16 has 1 mask unit.* 2 views"),
    ):
        with pytest.raises(UsageError, match=message):
            pretrain(dataclasses.replace(config, start_size=start_size))
    with pytest.raises(UsageError, match="--start-size 96 is above --image-size 64"):
        dataclasses.replace(config, start_size=96)
    assert not list(elsewhere.iterdir())


def test_every_method_takes_smaller_crops() -> None:
    """A timm ViT has a table of positions for one size; what encodes its patches here does not use it."""
    for model, method in (
        ("vit_tiny_patch16_224", "mae"),
        ("vit_tiny_patch16_224", "coma"),
        ("dyvit_nano", "mae"),
    ):
        network = build_model({"model": model, "method": method, "views": 2, "image_size": 128, "patch_size": None})
        unit = network.stream_options()["unit_size"]
        for side in (64, 128):
            units = torch.arange((side // unit) ** 2).expand(2, -1)
            assert torch.isfinite(network(torch.randn(2, 3, side, side), units))
