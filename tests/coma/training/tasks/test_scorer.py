"""Evaluations now and then tell how good the features are, and change nothing."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn import shard_images
from masked import draw_pairs
from small_runs import course, lines, same_weights, small

from coma.errors import DataError, Preempted
from coma.evaluation.sample import few_of
from coma.evaluation.score import labelled_manifests, score
from coma.model.autoencoder import MaskedAutoencoder
from coma.pipeline import Stream
from coma.runs.read import load_autoencoder
from coma.shards.manifest import read_manifest
from coma.training import pretrain
from coma.training.logs.metrics import Progress
from coma.training.processes.world import free_port


def metrics(run: Path) -> tuple[list[tuple[Any, ...]], list[dict[str, Any]]]:
    """The lines of steps, without times, and those of evaluations."""
    return course(run), [line for line in lines(run) if "rankme" in line]


def test_training_does_not_notice_and_a_stopped_run_has_the_same_lines(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 24 images and 8 a step, every epoch ends after 3 steps."""
    plain, watched, stopped = (
        dataclasses.replace(small(data, tmp_path / name, steps=7, batch_size=8), model="dyvit_nano") for name in "abc"
    )
    pretrain(plain)
    with caplog.at_level(logging.INFO, "coma"):
        pretrain(dataclasses.replace(watched, evaluate_every=1))
    assert "step 3: 20-NN " in caplog.text
    for stop_after in (3, None):
        pretrain(dataclasses.replace(stopped, evaluate_every=1, stop_after=stop_after))
    steps, none = metrics(tmp_path / "a")
    steps_watched, scores = metrics(tmp_path / "b")
    assert none == []
    assert steps_watched == steps
    assert [line["step"] for line in scores] == [3, 6, 7]
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert metrics(tmp_path / "c") == (steps, scores)
    assert same_weights(tmp_path / "a", tmp_path / "c")

    judged = score(load_autoencoder(tmp_path / "b"), *labelled_manifests(data), probe=False)  # as `coma knn` would
    assert judged.knn is not None
    assert (scores[-1]["knn"], scores[-1]["rankme"]) == (round(judged.knn, 3), round(judged.rankme, 3))
    assert "20-NN" in (tmp_path / "b" / "report.html").read_text()


@pytest.mark.parametrize("asked_at", [3, 4])
def test_who_is_asked_to_stop_evaluates_later(data: Path, tmp_path: Path, asked_at: int) -> None:
    """An epoch ends after step 3, the run after step 4, when a wish to stop comes too late."""

    def ask(now: Progress) -> None:
        if now.step == asked_at - 1:
            (tmp_path / "run" / "stop").touch()

    config = small(data, tmp_path / "run", steps=4, batch_size=8, evaluate_every=1)
    config = dataclasses.replace(config, model="dyvit_nano")
    if asked_at == 3:
        with pytest.raises(Preempted, match="saved step 3"):
            pretrain(config, ask)
        assert metrics(tmp_path / "run")[1] == []
        pretrain(config)
    else:
        assert pretrain(config, ask)["finished"]
    assert [line["step"] for line in metrics(tmp_path / "run")[1]] == [3, 4]


@pytest.mark.slow
def test_two_processes_share_the_extraction_and_wait_for_the_one_that_scores(data: Path, tmp_path: Path) -> None:
    """The scores are those that one process gives the same weights."""
    config = small(data, tmp_path / "run", steps=1, evaluate_every=1, devices=2, ds_config="zero2")
    assert pretrain(config)["finished"]
    steps, scores = metrics(tmp_path / "run")
    assert len(steps) == len(scores) == 1
    judged = score(load_autoencoder(tmp_path / "run"), *labelled_manifests(data), probe=False)
    assert (scores[0]["knn"], scores[0]["rankme"]) == (round(judged.knn or 0, 3), round(judged.rankme, 3))


def test_the_shares_of_all_ranks_are_the_whole(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 24 images in batches of 5, to the last bit; some of seven ranks have none."""
    from coma.runs.read import build_model
    from coma.training.tasks import scorer as module

    monkeypatch.setattr(module, "BATCH_SIZE", 5)
    model = {"model": "dyvit_nano", "method": "coma", "views": 2, "image_size": 32, "patch_size": 2}

    def build() -> MaskedAutoencoder:
        return build_model(model)

    torch.manual_seed(0)
    weights = build().state_dict()
    scorer = module.FeatureScorer(build, read_manifest(data), torch.device("cpu"), {"workers": 1})
    (whole,) = scorer.extract_share(weights, 0, 1, lambda: None)
    assert whole is not None
    for ranks in (2, 7):
        shares = [scorer.extract_share(weights, rank, ranks, lambda: None) for rank in range(ranks)]
        together = module.joined([share for (share,) in shares if share is not None])
        assert torch.equal(together.x, whole.x)
        assert together.samples.tolist() == list(range(24))
        scorer.together(shares)
        assert scorer.score(weights, 1, lambda: None) == scorer.score(weights, 1, lambda: None)  # given, and extracted


FAILING = """
import sys
from coma.errors import DivergedError
from coma.training.processes.world import Place, joined
from coma.training.tasks.scorer import evaluate

class Scorer:
    def score(self, weights, step, after_batch):
        after_batch()
        raise DivergedError("nothing is finite")

rank, port = map(int, sys.argv[1:])
try:
    with joined(Place(rank, rank, 2, "127.0.0.1", port)) as world:
        evaluate(Scorer(), world, {}, 1, lambda: None)
except BaseException as error:
    print(repr(error))
"""


def test_an_evaluation_that_fails_ends_those_who_wait_for_it() -> None:
    port = str(free_port())
    both = [
        subprocess.Popen([sys.executable, "-c", FAILING, str(rank), port], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=200)[0].strip() for process in both]
    assert said[0].startswith("DivergedError('step 1: nothing is finite: the run has diverged")
    assert said[1] == "SystemExit(4)"


def test_without_labels_rankme_is_all(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coma.runs.read import build_model
    from coma.training.tasks.scorer import FeatureScorer

    manifest = dataclasses.replace(read_manifest(data), label=None, class_names=None)
    model = {"model": "dyvit_nano", "method": "coma", "views": 2, "image_size": 32, "patch_size": 2}

    def build() -> MaskedAutoencoder:
        return build_model(model)

    scorer = FeatureScorer(build, manifest, torch.device("cpu"), {"workers": 1})
    calls: list[int] = []
    line = scorer.score(build().state_dict(), 5, after_batch=lambda: calls.append(1))
    assert list(line) == ["step", "rankme"]
    assert len(calls) == 1
    with pytest.raises(DataError, match="has 4 images"):
        FeatureScorer(build, few_of(manifest, 4), torch.device("cpu"), {})


def test_few_of_many_are_the_first_or_spread_over_sorted_shards(data: Path) -> None:
    manifest = read_manifest(data)
    few = few_of(manifest, 10)
    assert (len(few), few.shard_lengths.sum()) == (10, 10)
    assert few.offset.tolist() == manifest.offset[:10].tolist()
    assert few_of(manifest, 24) is manifest
    shards = np.repeat(np.arange(6, dtype=np.int32), 4)
    by_class = dataclasses.replace(
        manifest,
        shards=manifest.shards * 6,
        shard_lengths=np.full(6, 4),
        shard_id=shards,
        label=shards,
    )
    assert few_of(by_class, 6).label.tolist() == list(range(6))  # type: ignore[union-attr]
    spread = few_of(by_class, 6)  # rows 0, 4, 8, ...
    for names in ("keys", "sources", "formats"):
        assert getattr(spread, names)([5, 1]) == getattr(manifest, names)([20, 4])
        assert getattr(few_of(spread, 2), names)([1]) == getattr(manifest, names)(few_of(spread, 2).rows[1:])
    with Stream(few, batch_size=4, image_size=32, views=1, training=False, workers=1) as stream:
        shown = torch.cat([batch.labels for batch in stream if batch.labels is not None])
    assert manifest.label is not None
    assert shown.tolist() == manifest.label[:10].tolist()


def test_masks_are_segmented_by_neighbours(tmp_path: Path) -> None:
    from coma.runs.read import build_model
    from coma.training.tasks.scorer import FeatureScorer

    draw_pairs(tmp_path / "drawn", 12, images="images/train/{}.jpg", masks="masks/train/{}.png")
    draw_pairs(tmp_path / "drawn", 5, images="images/val/{}.jpg", masks="masks/val/{}.png", first=30)
    manifest = read_manifest(shard_images(tmp_path / "drawn", tmp_path / "data"))
    model = {"model": "dyvit_nano", "method": "coma", "views": 2, "image_size": 32, "patch_size": 2}

    def build() -> MaskedAutoencoder:
        return build_model(model)

    scorer = FeatureScorer(build, manifest, torch.device("cpu"), {"workers": 1})
    weights, calls = build().state_dict(), list[int]()
    line = scorer.score(weights, 5, after_batch=lambda: calls.append(1))
    assert list(line) == ["step", "rankme", "miou_knn", "pixel_accuracy_knn"]
    assert line["miou_knn"] > 15  # by chance it is 14
    assert len(calls) == 1 + 2  # RankMe of train; then train and val
    assert scorer.score(weights, 5, after_batch=lambda: None) == line
