"""Figures that belong together; how fast anything is, is no test's business."""

import json
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from coma.bench import ways
from coma.bench.loader import (
    NATIVE,
    PEER,
    STREAM,
    BenchOptions,
    LoaderBench,
    Timing,
    _sample,
    advice,
    bench_loader,
)
from coma.bench.plot import write_bars
from coma.cli.bench import app
from coma.errors import DataError, UsageError
from coma.shards.manifest import read_manifest
from coma.shards.options import ShardOptions
from coma.shards.writer import shard

OPTIONS = BenchOptions(images=10, rounds=2, image_size=28, batch_size=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images, JPEG and PNG, in a few shards."""
    folder = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    for number in range(12):
        path = folder / "photos" / f"class-{number % 2}" / f"{number}.{'png' if number % 6 == 0 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)).save(path)
    shard(folder / "photos", folder / "shards", ShardOptions(workers=1, shard_bytes=20_000))
    return folder / "shards"


@pytest.fixture(scope="module")
def found(data: Path) -> LoaderBench:
    return bench_loader(data, OPTIONS)


def test_every_way_has_its_figures(found: LoaderBench) -> None:
    assert found.images == 8  # whole batches
    assert set(found.ways) == {STREAM, PEER, "webdataset + PIL", NATIVE}
    assert len(found.limits) == 2
    for timing in (found.ways | found.limits).values():
        assert len(timing.cpu_s) == len(timing.wall_s) == OPTIONS.rounds
        assert timing.images_per_cpu_s > 0
    assert found.bottleneck in {*found.stages_us, "storage"}
    assert found.ways[PEER].ratio_to(found.ways[PEER]) == 1


def test_the_machine_is_left_as_it_was(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = os.sched_getaffinity(0), torch.get_num_threads()
    bench_loader(data, replace(OPTIONS, rounds=1))
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["coma_stream", "image_folder", "web_dataset", "native_dali", "whole_graph"])
def test_ways_make_batches_of_the_size_asked_for(name: str, data: Path, tmp_path: Path) -> None:
    sample, _ = _sample(read_manifest(data), tmp_path, 8, 4, 28)
    assert len(sample.manifest) == len(list(sample.folder.rglob("*.*"))) == 8
    way = getattr(ways, name)(sample)
    assert list(islice(way, 5)) == [4] * 5  # over the end of the sample
    way.close()


def test_ratios_are_taken_round_by_round() -> None:
    """A round in which all were slow does not count against any of them."""
    slow, fast = Timing((2.0, 20.0, 2.2), (1.0,) * 3), Timing((1.0, 10.0, 1.1), (1.0,) * 3)
    assert fast.ratio_to(slow) == 2
    assert fast.images_per_cpu_s == pytest.approx(1 / 1.1)


def test_the_advice_fits_the_bottleneck(found: LoaderBench) -> None:
    large = replace(found, shorter_side=1000, storage_images_per_s=1e9, options=BenchOptions())
    decoding = replace(large, stages_us={"reading": 1.0, "decoding": 9.0})
    assert decoding.bottleneck == "decoding"
    assert "--resize 256" in advice(decoding)
    assert "GPU" in advice(replace(decoding, shorter_side=256))
    assert "GPU" in advice(replace(large, stages_us={"hand-over, masks, threads": 9.0}))
    storage = replace(decoding, storage_images_per_s=0.001)
    assert storage.bottleneck == "storage"
    assert "disk" in advice(storage)


def test_the_table_fits_80_columns_and_the_plot_is_a_picture(data: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    command = ["loader", str(data), "--images", "8", "--rounds", "1", "--image-size", "28"]
    done = CliRunner().invoke(app, [*command, "--plot", str(plot)], catch_exceptions=False)
    assert done.exit_code == 0
    lines = [line for line in done.stdout.splitlines() if str(tmp_path.parent) not in line]
    assert max(map(len, lines)) <= 80
    assert "bottleneck" in done.stdout
    with Image.open(plot) as picture:
        assert picture.size[0] == 960


def test_json_holds_the_table(data: Path) -> None:
    command = ["loader", str(data), "--images", "8", "--rounds", "1", "--image-size", "28", "--json"]
    result = json.loads(CliRunner().invoke(app, command, catch_exceptions=False).stdout)
    assert result["ways"][PEER]["ratio"] == 1
    assert set(result) >= {"decoding_alone", "stages_us", "bottleneck", "advice", "ratio_to_native_dali"}


def test_bars_are_as_long_as_their_values(tmp_path: Path) -> None:
    write_bars(tmp_path / "a.png", "t", "n", {"a": 50, "b": 100}, mine="a", limits=frozenset({"b"}))
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture).astype(int)
    mine = (np.abs(pixels - [0x25, 0x63, 0xC9]).sum(2) == 0).any(0).sum()
    limit = (np.abs(pixels - [0xD9, 0xDF, 0xE7]).sum(2) == 0).any(0).sum()
    assert limit == pytest.approx(2 * mine, abs=3)


def test_nonsense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--rounds 0"):
        BenchOptions(rounds=0)
    with pytest.raises(DataError, match="no sharded data set"):
        bench_loader(tmp_path / "none", OPTIONS)
