"""What a step costs, as far as it does not depend on the machine; and how it is told."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from coma.bench.options import StepOptions
from coma.bench.step import StepTiming, bench_step
from coma.cli.bench import app
from coma.errors import UsageError

OPTIONS = StepOptions(
    models=("dyvit_nano:coma", "vit_tiny_patch16_224:mae"),
    batch_size=2,
    image_size=64,
    rounds=2,
    precisions=("fp32", "bf16"),
)


@pytest.fixture(scope="module")
def timings() -> tuple[StepTiming, ...]:
    return bench_step(OPTIONS).timings


def test_each_network_has_its_figures_in_each_precision(timings: tuple[StepTiming, ...]) -> None:
    assert [(timing.model, timing.precision) for timing in timings] == [
        ("dyvit_nano:coma", "fp32"),
        ("vit_tiny_patch16_224:mae", "fp32"),
        ("dyvit_nano:coma", "bf16"),
        ("vit_tiny_patch16_224:mae", "bf16"),
    ]
    for timing in timings:
        assert len(timing.step_s) == OPTIONS.rounds
        assert timing.images_per_s > 0
        assert timing.imagenet_epoch_h == pytest.approx(1_281_167 / timing.images_per_s / 3600)
    assert [timing.time_ratio for timing in timings[1::2]] == [1.0, 1.0]


def test_precision_changes_memory_and_not_the_work(timings: tuple[StepTiming, ...]) -> None:
    for full, half in zip(timings[:2], timings[2:], strict=True):
        assert half.parameters == full.parameters
        assert half.macs == full.macs
        assert half.memory_bytes < 0.75 * full.memory_bytes


def test_multiply_adds_are_those_of_the_table() -> None:
    """The design's figure of a base's training pass, counted on real kernels."""
    options = StepOptions(models=("dyvit_tiny:coma",), precisions=("fp32",), batch_size=1, rounds=1)
    assert bench_step(options).timings[0].macs == pytest.approx(1.54e9, rel=0.01)


def test_recomputed_stages_stand_beside_the_same_network() -> None:
    """Backward passes are counted too: what they recompute is no more memory than one unit at a time."""
    small = {"batch_size": 2, "image_size": 64, "rounds": 1, "precisions": ("fp32",)}
    models = ("dyvit_nano:coma", "vit_tiny_patch16_224:mae")
    result = bench_step(StepOptions(models=models, grad_checkpointing="1,2", **small))
    recomputed, plain, vit = result.timings
    assert [timing.name for timing in result.timings] == [
        "dyvit_nano:coma (1,2)",
        "dyvit_nano:coma",
        "vit_tiny_patch16_224:mae",
    ]
    assert recomputed.memory_bytes < 0.65 * plain.memory_bytes
    assert (recomputed.parameters, recomputed.macs) == (plain.parameters, plain.macs)
    alone = bench_step(StepOptions(models=("vit_tiny_patch16_224:mae",), grad_checkpointing="all", **small)).timings
    assert [timing.grad_checkpointing for timing in alone] == ["all", "none"]
    assert alone[0].memory_bytes < 0.3 * alone[1].memory_bytes == 0.3 * vit.memory_bytes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"models": ("dyvit_base",)}, "NAME:METHOD"),
        ({"models": ("dyvit_base:dino",)}, "coma or independent or mae"),
        ({"models": ("dyvit_bsae:coma",)}, "did you mean 'dyvit_base'"),
        ({"models": ("vit_base:mae",)}, "did you mean 'vit_base_patch16_224'"),
        ({"precisions": ("fp8",)}, "fp32 or bf16"),
        ({"rounds": 0}, "--rounds is 0"),
        ({"grad_checkpointing": "first"}, "--grad-checkpointing is 'first'"),
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bench_step(StepOptions(**wrong))


def test_the_command_prints_a_table_that_fits_and_draws_it(tmp_path: Path) -> None:
    small = [
        "--models",
        "dyvit_nano:coma,vit_tiny_patch16_224:mae",
        "--batch-size",
        "1",
        "--image-size",
        "64",
        "--rounds",
        "1",
    ]
    done = CliRunner().invoke(app, ["step", *small, "--precision", "fp32", "--plot", str(tmp_path / "bars.png")])
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    assert "dyvit_nano:coma" in done.stdout
    with Image.open(tmp_path / "bars.png") as picture:
        assert picture.width > 400
    done = CliRunner().invoke(app, ["step", *small, "--precision", "bf16", "--json"])
    assert [row["precision"] for row in json.loads(done.stdout)["steps"]] == ["bf16", "bf16"]
