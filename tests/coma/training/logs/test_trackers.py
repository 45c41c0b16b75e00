"""Figures reach Weights & Biases and MLflow, where they are installed, and nothing there can end a run."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from small_runs import lines, small

from coma.errors import Preempted, UsageError
from coma.installed.installation import installation
from coma.training import PretrainConfig, pretrain
from coma.training.logs import trackers
from coma.training.logs.metrics import MetricsLog, Progress
from coma.training.logs.trackers import open_trackers


class Flaky:
    """Takes figures twice, then has no network any more."""

    id = "x"

    def __init__(self) -> None:
        self.taken: list[tuple[int, set[str]]] = []
        self.closed = "no"

    def write(self, figures: Mapping[str, float], step: int) -> None:
        if len(self.taken) == 2:
            raise OSError("no route")
        self.taken.append((step, set(figures)))

    def close(self, *, failed: bool) -> None:
        self.closed = "failed" if failed else "ended"
        if len(self.taken) == 2:
            raise OSError("no route")


def test_figures_go_where_they_are_wanted_until_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flaky = Flaky()
    log = MetricsLog(tmp_path, 0, [flaky])
    log.write({"step": 1, "loss": 0.5, "lr": float("nan"), "batch_digest": "0f"})
    log.write({"step": 1, "knn": 50.0}, "evaluation")
    with caplog.at_level(logging.WARNING, "coma"):
        log.write({"step": 2, "loss": 0.5})
        log.write({"step": 3, "loss": 0.5})
    log.close()
    assert flaky.taken == [(1, {"train/loss"}), (1, {"evaluation/knn"})]
    assert caplog.text.count("no route") == 1
    assert flaky.closed == "no"  # it was dropped
    assert [line["step"] for line in lines(tmp_path)] == [1, 1, 2, 3]


def test_what_is_not_installed_is_refused_before_anything_is_written(
    data: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec

    def without_wandb(name: str, *rest: Any) -> Any:
        return None if name == "wandb" else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without_wandb)
    way_out = re.escape(installation().install("wandb"))
    with pytest.raises(UsageError, match=f"--log-to wandb: it is not installed here: {way_out}"):
        pretrain(small(data, Path("run"), log_to="wandb"))
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    ("raised", "closed"),
    [(None, "ended"), (Preempted("asked"), "ended"), (KeyboardInterrupt(), "ended"), (ZeroDivisionError(), "failed")],
)
def test_a_run_ends_there_however_it_ends_here(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException | None, closed: str
) -> None:
    flaky = Flaky()
    monkeypatch.setitem(trackers._KINDS, "wandb", lambda *_: flaky)
    monkeypatch.setattr("coma.training.train.check_installed", lambda names: None)

    def watch(now: Progress) -> None:
        if raised is not None:
            raise raised

    expected = contextlib.nullcontext() if raised is None else pytest.raises(type(raised))
    with expected:
        pretrain(small(data, tmp_path / "run", steps=1, log_to="wandb"), watch)
    assert flaky.closed == closed


def test_what_was_opened_is_closed_where_another_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Flaky:
        raise OSError("no server")

    flaky = Flaky()
    monkeypatch.setitem(trackers._KINDS, "wandb", lambda *_: flaky)
    monkeypatch.setitem(trackers._KINDS, "mlflow", fail)
    with pytest.raises(UsageError, match="--log-to mlflow: no server"):
        open_trackers(PretrainConfig(log_to="wandb,mlflow"), tmp_path)
    assert flaky.closed == "failed"


@pytest.mark.slow
def test_a_run_that_goes_on_is_one_run_there(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real libraries, where they are installed: Weights & Biases offline, MLflow into files."""
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    config = dataclasses.replace(
        small(data, tmp_path / "run", log_to="wandb, mlflow", evaluate_every=1), model="dyvit_nano"
    )
    pretrain(dataclasses.replace(config, stop_after=2))
    first = json.loads((tmp_path / "run" / "trackers.json").read_text())
    pretrain(config)
    assert json.loads((tmp_path / "run" / "trackers.json").read_text()) == first
    client = mlflow.MlflowClient()
    points = client.get_metric_history(first["mlflow"], "train/loss")
    losses = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line]
    assert [(point.step, point.value) for point in points] == list(enumerate(losses, 1))
    assert client.get_metric_history(first["mlflow"], "evaluation/rankme")
    assert client.get_run(first["mlflow"]).data.params["model"] == "dyvit_nano"
    sessions = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{first['wandb']}"))
    assert len(sessions) == 2


@pytest.mark.slow
def test_trackio_has_the_run_whole_after_a_resume(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real library, where it is installed, into a folder; another run of the name is another one there."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    config = dataclasses.replace(small(data, tmp_path / "run", log_to="trackio"), model="dyvit_nano")
    pretrain(dataclasses.replace(config, stop_after=2))
    first = json.loads((tmp_path / "run" / "trackers.json").read_text())
    pretrain(config)
    assert json.loads((tmp_path / "run" / "trackers.json").read_text()) == first
    pretrain(dataclasses.replace(config, out=tmp_path / "other" / "run", steps=1))
    runs = {run.name: run for run in trackio.Api().runs("coma")}
    assert len(runs) == 2
    logs = trackio.SQLiteStorage.get_logs("coma", first["trackio"])
    losses = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line]
    assert [(each["step"], each["train/loss"]) for each in logs] == list(enumerate(losses, 1))
    assert runs[first["trackio"]].config["model"] == "dyvit_nano"


def test_no_credentials_are_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    def begin(run: Path, config: dict[str, Any], known: str | None) -> Flaky:
        told.append(config)
        return Flaky()

    monkeypatch.setitem(trackers._KINDS, "wandb", begin)
    config = PretrainConfig(data="https://me:secret@host/shards?token=abc", log_to="wandb")
    open_trackers(config, tmp_path)
    assert told[0]["data"] == "https://host/shards"
