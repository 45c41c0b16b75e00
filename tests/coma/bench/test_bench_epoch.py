"""Figures of an epoch that belong together, on real shards; how fast anything is, is no test's business."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from drawn import sharded
from PIL import Image
from typer.testing import CliRunner

from coma.bench.epoch import EpochTiming, Turn, bench_epoch, take_turn
from coma.bench.network import Network
from coma.bench.options import EpochOptions
from coma.cli.bench import app
from coma.errors import UsageError
from coma.pipeline import Batch

OPTIONS = EpochOptions(
    models=("dyvit_nano:independent", "vit_tiny_patch16_224:mae"),
    batch_size=2,
    image_size=64,
    rounds=2,
    steps=2,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharded(tmp_path_factory.mktemp("epoch"), 12, size=(80, 60))


@pytest.fixture(scope="module")
def timings(data: Path) -> tuple[EpochTiming, ...]:
    return bench_epoch(data, OPTIONS).timings


def test_each_network_has_turns_of_both_kinds(timings: tuple[EpochTiming, ...]) -> None:
    assert tuple(timing.model for timing in timings) == OPTIONS.models
    assert timings[-1].epoch_ratio == 1
    for timing in timings:
        assert len(timing.streamed) == len(timing.in_memory) == OPTIONS.rounds
        assert all(0 < turn.wait_s < turn.step_s for turn in timing.streamed)
        assert all(0 <= turn.wait_s < turn.step_s for turn in timing.in_memory)
        assert timing.samples == 12
        assert timing.precision == ("bf16" if torch.cuda.is_available() else "fp32")


def test_waiting_is_told_from_working() -> None:
    """A stream that makes a batch in a twentieth of a second cannot make more of them, whatever the network is."""
    network = Network("dyvit_nano:coma", image_size=64, views=2, device=torch.device("cpu"), precision="fp32")
    steps = 0

    def slow() -> Iterator[Batch]:
        nonlocal steps
        while True:
            time.sleep(0.05)
            steps += 1
            yield Batch(torch.randn(1, 3, 64, 64), network.units(1), (2, 2), None, torch.arange(1))

    before = network.model.backbone.norm.weight.detach().clone()
    turn = take_turn(network, slow(), 3, uncounted=2)
    assert steps == 5
    assert turn.step_s > turn.wait_s >= 0.05
    assert not torch.equal(before, network.model.backbone.norm.weight)  # it is trained


def test_figures_follow_from_the_turns() -> None:
    timing = EpochTiming(
        model="a:coma",
        precision="fp32",
        streamed=(Turn(2.0, 0.5), Turn(4.0, 1.0), Turn(20.0, 15.0)),  # all was slow in the second round
        in_memory=(Turn(1.8, 0.0), Turn(3.6, 0.0), Turn(3.6, 0.0)),
        epoch_ratio=0.9,
        samples=7200,
        batch_size=8,
        image_size=224,
        device="here",
        epochs=10,
        devices=4,
    )
    assert (timing.step_s, timing.images_per_s) == (4.0, 2.0)
    assert timing.fed_ratio == pytest.approx(0.9)
    assert timing.wait_share == 0.25
    assert timing.epoch_h == 1
    figures = json.loads(json.dumps(timing.to_json()))
    assert figures["imagenet_device_h"] == pytest.approx(10 * 1_281_167 / 2 / 3600)
    assert figures["imagenet_h"]["1"] == 4 * figures["imagenet_h"]["4"] == figures["imagenet_device_h"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"models": ("dyvit_base",)}, "NAME:METHOD"),
        ({"models": ()}, "names no network"),
        ({"precision": "fp8"}, "fp32 or bf16"),
        ({"steps": 0}, "--steps is 0"),
        ({"devices": 0}, "--devices is 0"),
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EpochOptions(**wrong)  # type: ignore[arg-type]


def test_the_command_prints_a_table_that_fits_and_draws_it(data: Path, tmp_path: Path) -> None:
    small = ["--models", "dyvit_nano:coma,vit_tiny_patch16_224:mae", "--batch-size", "1", "--image-size", "64"]
    turns = ["--rounds", "1", "--steps", "1", "--devices", "3"]
    done = CliRunner().invoke(app, ["epoch", str(data), *small, *turns, "--plot", str(tmp_path / "bars.png")])
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    assert done.stdout.count("dyvit_nano:coma") == 2
    with Image.open(tmp_path / "bars.png") as picture:
        assert picture.width > 400
    done = CliRunner().invoke(app, ["epoch", str(data), *small, *turns, "--precision", "bf16", "--json"])
    rows = json.loads(done.stdout)["epochs"]
    assert [row["precision"] for row in rows] == ["bf16", "bf16"]
    assert [sorted(row["imagenet_h"]) for row in rows] == [["1", "3"]] * 2
