"""Runs on several data sets: the same to the bit when stopped, with the loss of each, and what is said of them."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from bands import band_set
from commands import all_gone, begin, command, descendants, ranks, wait_until
from drawn import sharded
from small_runs import course, lines, same_weights

from coma.errors import DataError, UsageError
from coma.exports.scored import what_to_score
from coma.model.build import build
from coma.pictures.step import read_step
from coma.pictures.step_sheet import step_sheet
from coma.runs.read import read_config, run_data_sets
from coma.runs.report_sources import by_source
from coma.shards.manifest import read_manifest
from coma.training import FinetuneConfig, PretrainConfig, pretrain
from coma.training.config.config_file import options_like
from coma.training.logs.by_source import BySource

STEPS, BATCH, DAMAGED = 6, 8, 3


@pytest.fixture(scope="module")
def place(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two data sets: 24 labelled images, and 6 without labels, one of them damaged."""
    place = tmp_path_factory.mktemp("mixture")
    shutil.copytree(data, place / "a-shards")
    sharded(place / "making", 6, smooth=True).rename(place / "b-shards")
    manifest = read_manifest(place / "b-shards")
    with manifest.shard_path(0).open("r+b") as file:
        file.seek(int(manifest.offset[DAMAGED]) + 200)
        file.write(b"flipped")
    return place


def config(place: Path, run: str, *, shares: tuple[str, str] = (":0.75", ":0.25"), **fields: Any) -> PretrainConfig:
    names = tuple(f"{place / name}{share}" for name, share in zip(("a-shards", "b-shards"), shares, strict=True))
    given = {"steps": STEPS, "batch_size": BATCH, "workers": 1, "data": names, "image_size": 32, **fields}
    return PretrainConfig(out=place / run, model="dyvit_nano", patch_size=2, **given)


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """A run that was never interrupted, in micro-batches."""
    pretrain(config(place, "whole", micro_batch_size=4))
    return place / "whole"


def test_loss_images_and_epochs_of_each_are_counted(whole: Path) -> None:
    for line in lines(whole):
        a, b = (line[f"source/{name}/samples"] for name in ("a-shards", "b-shards"))
        assert (a, b) == (6 * line["step"], 2 * line["step"])
        assert line["source/a-shards/epochs"] == a / 24
        assert line["source/b-shards/epochs"] == b / 6
        of_both = (6 * line["source/a-shards/loss"] + 2 * line["source/b-shards/loss"]) / 8
        assert of_both == pytest.approx(line["loss"], rel=1e-6)
        assert line["epoch"] == line["samples"] / 30
    ledger = [json.loads(line) for line in (whole / "ledger.jsonl").read_text().splitlines()]
    assert {line["data_set"] for line in ledger} == {"b-shards"}


def test_stopped_and_moved_is_to_the_bit_never_stopped(whole: Path, place: Path, tmp_path: Path) -> None:
    pretrain(config(place, "stopped", micro_batch_size=4, stop_after=3))
    shutil.copytree(place / "a-shards", tmp_path / "renamed")
    shutil.copytree(place / "b-shards", tmp_path / "b-shards")
    shutil.move(place / "stopped", tmp_path / "stopped")
    moved = (f"{tmp_path}/renamed:3", f"{tmp_path}/b-shards:1.0")
    pretrain(config(tmp_path, "stopped", micro_batch_size=4, data=moved))
    assert course(tmp_path / "stopped") == course(whole)
    assert same_weights(tmp_path / "stopped", whole)
    of_sources = [
        [{name: line[name] for name in line if name.startswith("source/")} for line in lines(run)]
        for run in (whole, tmp_path / "stopped")
    ]
    assert of_sources[0] == of_sources[1]  # by the names that they had at the start
    damaged = json.loads((whole / "ledger.jsonl").read_text().splitlines()[0])["step"]
    assert [row.asked.data_set for row in read_step(tmp_path / "stopped", damaged).rows if row.substitute] == [
        "b-shards"
    ]


def test_other_shares_are_another_run(whole: Path, place: Path) -> None:
    with pytest.raises(UsageError, match="the mix of the data sets was '3:1' there and is '1:1' now: give another"):
        pretrain(config(place, "whole", shares=(":1", ":1")))
    with pytest.raises(UsageError, match="the data's fingerprint was"):
        pretrain(config(place, "whole", data=place / "a-shards"))
    a, b = (f"{place}/{name}-shards" for name in "ab")
    order = "the data sets were a-shards b-shards there and are b-shards a-shards now, in another order: give those"
    with pytest.raises(UsageError, match=order):
        pretrain(config(place, "whole", data=(f"{b}:1", f"{a}:3")))
    with pytest.raises(UsageError, match="data set a-shards-2 is not the b-shards that it began with: its fingerprint"):
        pretrain(config(place, "whole", data=(f"{a}:3", f"{a}:1")))


def test_the_images_of_a_step_name_their_data_sets(whole: Path) -> None:
    contents = read_step(whole, 2)
    assert contents.matches
    names = [row.asked.data_set for row in contents.rows]
    assert (names.count("a-shards"), names.count("b-shards")) == (6, 2)
    for row in contents.rows:
        of_a = row.asked.data_set == "a-shards"
        assert (row.asked.sample < 24) is of_a
        assert (row.asked.class_name is not None) is of_a
    replaced = [row for step in range(1, STEPS + 1) for row in read_step(whole, step).rows if row.substitute]
    assert replaced
    assert {row.shown.data_set for row in replaced} == {"b-shards"}
    assert step_sheet(contents).width > 100
    assert json.loads(json.dumps(contents.to_json()))["data"] == [str(each / "train") for each in run_data_sets(whole)]


def test_the_report_shows_each_data_set(whole: Path) -> None:
    report = (whole / "report.html").read_text()
    assert "Loss by data set" in report
    assert report.count("<td class='n'>75%</td>") == 2  # wanted, and seen
    assert "</b>b-shards</td>" in report


def test_what_takes_one_data_set_asks_for_it(whole: Path, place: Path) -> None:
    with pytest.raises(DataError, match=r"was trained on 2 data sets, .*: name one after the run"):
        what_to_score(whole, None)
    scored = what_to_score(whole, place / "a-shards")
    assert scored.kept({"knn": 50.0, "step": STEPS})["metrics"]
    assert "data" in json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    with pytest.raises(UsageError, match=r"data is \['a', 'b'\], and fine-tuning takes one data set"):
        FinetuneConfig(source=whole, data=("a", "b"))
    with pytest.raises(UsageError, match=r"a:0\.5 is the only data set"):
        FinetuneConfig(source=whole, data="a:0.5")


def test_a_run_like_it_takes_its_data_sets(whole: Path, place: Path) -> None:
    assert options_like(whole, PretrainConfig)["data"] == [f"{place}/a-shards:0.75", f"{place}/b-shards:0.25"]
    assert read_config(whole)["resolved"]["sources"][1]["share"] == 0.25


def test_it_evaluates_on_the_first_or_on_another(place: Path, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "coma"):
        pretrain(config(place, "evaluated", steps=2, evaluate_every=1))
        assert "evaluation is on" in caplog.text
        pretrain(config(place, "evaluated-on", steps=2, evaluate_every=1, evaluate_on=data))
    first, other = (lines(place / run)[-1] for run in ("evaluated", "evaluated-on"))
    assert first["evaluated_on"] == f"{place}/a-shards/train"
    assert other["evaluated_on"] == f"{data}/train"
    assert first["knn"] == other["knn"]  # of the same images
    with pytest.raises(UsageError, match="--evaluate-on goes with --evaluate-every"):
        config(place, "no", evaluate_on=data)
    bands = band_set(place / "bands", "npy", 6)
    with pytest.raises(UsageError, match=r"takes images of .* and those of .*bands.* have 2 channels of float32"):
        pretrain(config(place, "no", evaluate_every=1, evaluate_on=bands))
    assert not (place / "no").exists()


def test_many_data_sets_are_told_apart_in_the_report() -> None:
    names = [f"part-{number}" for number in range(8)]
    steps = [{"step": step, **{f"source/{name}/loss": 1.0 for name in names}} for step in (1, 2)]
    page = by_source(steps, {"sources": [{"name": name} for name in names]})
    for style in re.findall("class='key ([^']+)'", page):
        assert page.count(f"class='line {style}'") == 1
    assert len(set(re.findall("class='key ([^']+)'", page))) == 8


@pytest.mark.parametrize("method", ["coma", "independent", "mae"])
def test_the_loss_is_the_same_to_the_bit_with_that_of_each_image(method: str) -> None:
    torch.manual_seed(0)
    model = build("dyvit_nano", method, views=1 if method == "mae" else 2, image_size=32, patch_size=2)
    images = torch.randn(5, 3, 32, 32)
    units = torch.stack([torch.randperm(model.units) for _ in range(5)])
    results = []
    for keeps in (False, True):
        model.zero_grad()
        model.keeps_image_losses = keeps
        loss = model(images, units)
        loss.backward()
        results.append([loss.detach(), *(each.grad for each in model.parameters() if each.grad is not None)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert model.image_losses is not None
    assert model.image_losses.shape == (5,)
    torch.testing.assert_close(model.image_losses.mean(), results[0][0])
    alone = model(images[3:4], units[3:4]).detach()
    torch.testing.assert_close(model(images, units) * 0 + model.image_losses[3], alone)


def test_a_data_set_without_images_in_a_step_has_no_loss_there(place: Path) -> None:
    from coma.shards.manifest import read_mixture

    by_source = BySource(read_mixture([f"{place}/a-shards:9", f"{place}/b-shards:1"]))
    figures = by_source.figures(by_source.sums(torch.tensor([0, 5]), torch.tensor([1.0, 2.0])), 2)
    assert figures["source/a-shards/loss"] == 1.5
    assert "source/b-shards/loss" not in figures
    assert not BySource(read_manifest(place / "a-shards"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero1", "zero3"])
def test_one_two_and_one_process_train_on_the_same_images(whole: Path, place: Path, stage: str) -> None:
    run = f"one-two-one-{stage}"
    for devices in (1, 2, 1):
        pretrain(config(place, run, stop_after=2, devices=devices, ds_config=stage))
    assert [line["batch_digest"] for line in lines(place / run)] == [line["batch_digest"] for line in lines(whole)]
    for ours, theirs in zip(lines(place / run), lines(whole), strict=True):
        for name in ("a-shards", "b-shards"):
            assert ours[f"source/{name}/samples"] == theirs[f"source/{name}/samples"]
            assert ours[f"source/{name}/loss"] == pytest.approx(theirs[f"source/{name}/loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_killed_again_and_again_is_to_the_bit_never_killed(place: Path, tmp_path: Path, devices: int) -> None:
    def mixed(run: str) -> list[str]:
        options = ("--steps", "40", "--save-every", "3", "--devices", str(devices))
        words = command(Path(f"{place}/a-shards:0.75"), tmp_path / run, *options)
        words.insert(words.index("--out"), f"{place}/b-shards:0.25")
        return words

    log = tmp_path / "log"
    for steps in (5, 16, 27):
        process = begin(mixed("killed"), log)
        metrics = tmp_path / "killed" / "metrics.jsonl"
        wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= steps, 400.0, process)  # noqa: B023
        processes = [process.pid, *descendants(process.pid)]
        os.kill(ranks(process, devices)[-1], signal.SIGKILL)
        process.wait(60)
        all_gone(processes)
    for run in ("killed", "whole-by-command"):
        assert begin(mixed(run), log).wait(400.0) == 0, log.read_text()
    killed, whole = tmp_path / "killed", tmp_path / "whole-by-command"
    assert [line["step"] for line in lines(killed)] == list(range(1, 41))
    assert course(killed) == course(whole)
    assert same_weights(killed, whole)
