"""Figures that belong together; how fast anything is, is no test's business."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import shard_images, sharded
from PIL import Image
from typer.testing import CliRunner

from coma.bench import image_loaders, loader, stages
from coma.bench.image_loaders import DECODING_ALONE, LOADERS, Sample
from coma.bench.loader import bench_loader
from coma.bench.loader_result import REFERENCE, STREAM, Images, LoaderResult, advice
from coma.bench.options import LoaderOptions
from coma.bench.plot import write_bars
from coma.bench.timing import Loading, Timing, take_turns
from coma.cli.bench import app
from coma.errors import DataError, UsageError
from coma.shards.manifest import read_manifest

OPTIONS = LoaderOptions(images=10, rounds=2, image_size=28, batch_size=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images, JPEG and PNG, in a few shards."""
    return sharded(
        tmp_path_factory.mktemp("bench"),
        12,
        classes=("class-0", "class-1"),
        size=(80, 60),
        name=lambda number: f"{number}.{'png' if number % 6 == 0 else 'jpg'}",
        shard_bytes=20_000,
    )


@pytest.fixture(scope="module")
def result(data: Path) -> LoaderResult:
    return bench_loader(data, OPTIONS)


def test_every_loader_has_its_figures(result: LoaderResult) -> None:
    assert result.images.count == 8  # whole batches
    assert set(result.loaders) == set(LOADERS)
    assert result.failed == {}
    assert result.resized is not None
    assert result.resized[0].shorter_side == result.options.resize_px == 32
    assert set(result.decoding_alone) == set(DECODING_ALONE)
    for timing in (result.loaders | result.decoding_alone).values():
        assert len(timing.cpu_s) == len(timing.wall_s) == OPTIONS.rounds
        assert timing.images_per_cpu_s > 0
    assert result.bottleneck in {*result.stages_us, "storage"}
    assert result.loaders[REFERENCE].ratio_to(result.loaders[REFERENCE]) == 1


def test_the_machine_is_left_as_it_was(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = os.sched_getaffinity(0), torch.get_num_threads()
    bench_loader(data, replace(OPTIONS, rounds=1))
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("load", "image_size"),
    [(load, 28) for load in (*LOADERS.values(), stages.whole_graph)]
    + [(image_loaders.coma_stream, 32), (image_loaders.coma_stream, 64)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_loaders_make_batches_of_the_size_asked_for(
    load: Callable[[Sample], Loading], image_size: int, data: Path, tmp_path: Path
) -> None:
    sample, *_ = loader.copy_sample(
        read_manifest(data), tmp_path, LoaderOptions(images=8, image_size=image_size, batch_size=4)
    )
    assert len(sample.manifest) == len(list(sample.folder.rglob("*.*"))) == 8
    running = load(sample)
    assert list(islice(running, 5)) == [4] * 5  # over the end of the sample
    running.close()


def test_ratios_are_taken_round_by_round() -> None:
    """A round in which all were slow does not count against any of them."""
    slow, fast = Timing((2.0, 20.0, 2.2), (1.0,) * 3), Timing((1.0, 10.0, 1.1), (1.0,) * 3)
    assert fast.ratio_to(slow) == 2
    assert fast.images_per_cpu_s == pytest.approx(1 / 1.1)


def test_the_sample_fits_the_size_of_the_images() -> None:
    photographs, tiny = LoaderOptions(), LoaderOptions(image_size=32)
    assert photographs.sample_size(0.2) == (256, 32)
    assert photographs.sample_size(12) == (42, 32)
    assert photographs.sample_size(0.001) == (1024, 128)  # 224 px to resize to, all the same
    assert tiny.sample_size(0.001) == (2048, 256)
    assert LoaderOptions(images=10, batch_size=5).sample_size(12) == (10, 5)


def test_shards_are_to_be_a_little_larger_than_the_images_of_a_batch() -> None:
    assert [LoaderOptions(image_size=size).resize_px for size in (32, 96, 224, 384)] == [64, 128, 256, 448]


def times(cpu_s: float) -> Timing:
    return Timing((cpu_s,), (cpu_s,))


def test_the_advice_fits_the_bottleneck(result: LoaderResult) -> None:
    fast = {"storage_images_per_s": 1e9, "memory_images_per_s": 2e9, "options": LoaderOptions()}
    decoding = replace(
        result,
        loaders={STREAM: times(1.0)},
        stages_us={"reading": 1.0, "decoding": 9.0},
        resized=None,
        **fast,
    )
    assert decoding.bottleneck == "decoding"
    assert "GPU" in advice(decoding)
    assert "GPU" in advice(replace(decoding, stages_us={"resizing and normalising": 9.0}))
    assert "larger batches" in advice(replace(decoding, stages_us={"hand-over, masks, threads": 9.0}))
    assert "larger batches" in advice(replace(decoding, stages_us={"checking hash and header": 9.0}))


def test_resizing_is_advised_where_it_was_seen_to_help(result: LoaderResult) -> None:
    small, fast = Images(8, 30_000.0, 0.1, 256.0), {"storage_images_per_s": 1e9, "options": LoaderOptions()}
    decoding = replace(result, loaders={STREAM: times(1.0)}, stages_us={"decoding": 9.0}, **fast)
    assert advice(replace(decoding, resized=(small, times(0.5)))) == (
        "coma shard SOURCE --resize 256: 2.0 times as fast, 30 KB an image"
    )
    assert "--resize" not in advice(replace(decoding, resized=(small, times(0.95))))


def test_storage_is_the_bottleneck_if_it_and_nothing_else_cannot_keep_up(result: LoaderResult) -> None:
    slow = replace(
        result,
        loaders={STREAM: times(0.01)},
        images=Images(8, 100_000.0, 0.2, 375.0),
        cores=8,
        storage_images_per_s=400.0,
        memory_images_per_s=40_000.0,
        resized=(Images(8, 30_000.0, 0.1, 256.0), times(0.01)),
        options=LoaderOptions(),
    )
    assert slow.cores_fed == 4
    assert slow.bottleneck == "storage"
    assert "disk" in advice(slow)
    assert "--resize 256" in advice(slow)
    assert "--resize" not in advice(replace(slow, resized=None))
    assert replace(slow, cores=4).bottleneck != "storage"
    assert replace(slow, memory_images_per_s=500.0).bottleneck != "storage"  # a faster disk would not help


def test_small_jpegs_are_not_resized_to_compare(data: Path, tmp_path: Path) -> None:
    sample, *_ = loader.copy_sample(read_manifest(data), tmp_path, OPTIONS)
    assert loader._resized(sample, 64) is None  # 60 px on the shorter side, and mostly JPEGs
    small = loader._resized(sample, 32)
    assert small is not None
    assert np.minimum(small.manifest.width, small.manifest.height).tolist() == [32] * 8


def test_small_pngs_are_made_jpegs_to_compare(tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / "photos" / "a" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (number, 0, 0)).save(path)
    shard_images(tmp_path / "photos", tmp_path / "pngs")
    sample, *_ = loader.copy_sample(read_manifest(tmp_path / "pngs"), tmp_path, OPTIONS)
    small = loader._resized(sample, 32)
    assert small is not None
    assert set(small.manifest.formats(range(4))) == {"jpeg"}


def counting(images: int, error: Exception | None = None) -> Callable[[], Loading]:
    """A loader that fails in its second batch, if it is given an error."""

    def load() -> Loading:
        yield images
        if error is not None:
            raise error
        while True:
            yield images

    return load


def test_a_loader_that_fails_is_named_and_the_others_go_on() -> None:
    made = {
        "good": counting(4),
        "late": counting(4, RuntimeError("Critical error in pipeline:\nthe reader is gone,\nand more")),
        "broken": lambda: a_library_that_is_missing(),
    }
    timings, failed = take_turns(made, 8, 3, lambda *_: None, needed={"good"})
    assert set(timings) == {"good"}
    assert len(timings["good"].cpu_s) == 3
    assert failed["late"] == "RuntimeError: the reader is gone"
    assert failed["broken"] == "ModuleNotFoundError: No module named 'no_such_library'"


def a_library_that_is_missing() -> Loading:
    import no_such_library  # type: ignore[import-not-found]

    yield no_such_library.images


def test_what_the_comparison_cannot_do_without_ends_it() -> None:
    with pytest.raises(DataError, match="PIL fails on this sample: ValueError: no image"):
        take_turns({"PIL": counting(4, ValueError("no image"))}, 8, 1, lambda *_: None, needed={"PIL"})
    with pytest.raises(UsageError, match="a flag"):  # what coma says needs no such words
        take_turns({"coma": counting(4, UsageError("a flag"))}, 8, 1, lambda *_: None, needed=())


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["loader", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_a_failure_is_told_in_one_line(result: LoaderResult) -> None:
    failed = replace(result, failed={"broken": "OSError: libjpeg.so is missing " * 9})
    (line,) = [line for line in failed.to_lines() if line.startswith("failed: ")]
    assert line.startswith("failed: broken: OSError: libjpeg.so is missing")
    assert len(line) <= 80
    assert list(failed.to_json()["failed"]) == ["broken"]


def test_the_table_fits_80_columns_and_the_plot_is_a_picture(data: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    shown = run(str(data), "--images", "8", "--rounds", "1", "--image-size", "28", "--plot", str(plot))
    lines = [line for line in shown.splitlines() if str(tmp_path.parent) not in line]
    assert max(map(len, lines)) <= 80
    assert "bottleneck" in shown
    assert "coma, --resize 32" in shown
    with Image.open(plot) as picture:
        assert picture.size[0] == 960


def test_json_holds_the_table(data: Path) -> None:
    figures = json.loads(run(str(data), "--images", "8", "--rounds", "1", "--image-size", "28", "--json"))
    assert figures["ways"][REFERENCE]["ratio"] == 1
    assert set(figures) >= {"decoding_alone", "stages_us", "bottleneck", "advice", "ratio_to_native_dali"}
    assert set(figures["versions"]) >= {"torch", "pillow"}


def test_bars_are_as_long_as_their_values(tmp_path: Path) -> None:
    write_bars(tmp_path / "a.png", "t", "n", {"a": 50, "b": 100}, highlighted={"a"}, faded={"b"})
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture).astype(int)
    mine = (np.abs(pixels - [0x25, 0x63, 0xC9]).sum(2) == 0).any(0).sum()
    limit = (np.abs(pixels - [0xD9, 0xDF, 0xE7]).sum(2) == 0).any(0).sum()
    assert limit == pytest.approx(2 * mine, abs=3)


def test_long_names_do_not_run_into_bars_or_over_the_edge(tmp_path: Path) -> None:
    long = "a loader whose name is longer than any of those that we know of, and then some"
    values = {long: 123456.0, "b": 5.0}
    write_bars(tmp_path / "a.png", long * 3, long * 3, values, highlighted={long})
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture).astype(int)
    assert (pixels[:, -20:] == 255).all()
    (columns,) = np.nonzero((np.abs(pixels - [0x25, 0x63, 0xC9]).sum(2) == 0).any(0))
    row = 24 + 66 + 13  # the middle of the first bar
    assert (pixels[row - 13 : row + 13, columns[0] - 8 : columns[0]] == 255).all()
    assert len(columns) > 100  # room is left for bars


def test_nonsense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--rounds is 0"):
        LoaderOptions(rounds=0)
    with pytest.raises(DataError, match="no sharded data set"):
        bench_loader(tmp_path / "none", OPTIONS)
