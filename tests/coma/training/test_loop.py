"""Whole runs on a small data set: what they leave, and that stopping and going on changes nothing."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import DEVICE
from small_runs import course, lines, same_weights, small, weights_of
from torch import Tensor

from coma.errors import DataError, DivergedError, Preempted, UsageError
from coma.runs import names
from coma.runs.lines import read_lines
from coma.runs.read import build_model, latest_checkpoint, load_autoencoder
from coma.shards.manifest import read_manifest
from coma.training import PretrainConfig, loop, nonfinite, pretrain
from coma.training.engine import checkpoint
from coma.training.logs.metrics import MetricsLog, Progress
from coma.training.tasks import pretraining
from coma.training.tasks.previews import ReconstructionPreviewer

STAGES = ["zero0", "zero1", "zero2", "zero3"]
LIKE = 1 if DEVICE == "cpu" else 100
"""By how much less alike figures are on a GPU, which trains in bf16."""


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of four steps at every stage, never interrupted."""
    runs = {stage: tmp_path_factory.mktemp("whole") / stage for stage in STAGES}
    for stage, run in runs.items():
        pretrain(small(data, run, ds_config=stage))
    return runs


def assert_same_run(one: Path, other: Path) -> None:
    assert course(one) == course(other)
    assert same_weights(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero1", "zero3"])
def test_a_run_goes_on_with_other_stages_recomputed(
    whole: dict[str, Path], data: Path, tmp_path: Path, stage: str
) -> None:
    run = tmp_path / "run"
    pretrain(small(data, run, ds_config=stage, grad_checkpointing="1,2", stop_after=2))
    pretrain(small(data, run, ds_config=stage, grad_checkpointing="all", precision="fp32"))
    assert_same_run(run, whole[stage])
    with pytest.raises(UsageError, match="the precision was 'fp32' there and is 'bf16' now"):
        pretrain(small(data, run, ds_config=stage, precision="bf16"))
    with pytest.raises(UsageError, match="names stage 7, and this backbone has 4 stages"):
        pretrain(small(data, run, ds_config=stage, grad_checkpointing="7"))


@pytest.mark.gpu_too
def test_a_run_leaves_what_the_commands_after_it_need(whole: dict[str, Path], data: Path) -> None:
    run = whole["zero1"]
    steps = lines(run)
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert [line["samples"] for line in steps] == [4, 8, 12, 16]
    assert steps[-1]["epoch"] == pytest.approx(16 / 24)
    columns = [
        "step",
        "epoch",
        "samples",
        "loss",
        "lr",
        "grad_norm",
        "step_s",
        "data_wait_s",
        "images_per_s",
        "image_size",
        "batch_digest",
        "model_tflops",
        "memory_gib",
    ]
    if "mfu" in steps[0]:  # of a GPU whose peak is known
        columns.insert(-1, "mfu")
    assert list(steps[0]) == columns
    known = {value for name, value in vars(names).items() if name.endswith("_NAME")}
    assert {path.name for path in run.iterdir()} <= known
    assert all(line["step_s"] >= line["data_wait_s"] >= 0 for line in steps)
    assert (run / "previews" / "step-000000.png").exists()
    assert (run / "previews" / "step-000004.png").exists()
    assert list((run / "tensorboard").iterdir())
    config = json.loads((run / "config.json").read_text())
    assert config["config"]["model"] == "dyvit_nano"
    assert config["resolved"]["data"] == str(data)
    model = load_autoencoder(run)
    assert config["resolved"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert not model.training


@pytest.mark.gpu_too
def test_training_lowers_the_loss_and_keeps_what_was_asked(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"  # of three epochs of three steps
    config = small(data, run, steps=9, base_lr=0.05, batch_size=8, save_every=4)
    result = pretrain(dataclasses.replace(config, keep_last=1, keep_every_epochs=2))
    losses = [line["loss"] for line in lines(run)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert result["loss"] == losses[-1]
    assert result["finished"]
    assert {path.name for path in (run / "checkpoints").glob("step-*")} == {"step-000006", "step-000009"}


@pytest.mark.gpu_too
def test_all_stages_take_the_same_steps(whole: dict[str, Path]) -> None:
    reference = lines(whole["zero0"])
    for stage in STAGES[1:]:
        for mine, its in zip(lines(whole[stage]), reference, strict=True):
            assert mine["batch_digest"] == its["batch_digest"]
            assert mine["loss"] == pytest.approx(its["loss"], rel=1e-5 * LIKE)
            assert mine["grad_norm"] == pytest.approx(its["grad_norm"], rel=1e-4 * LIKE)


@pytest.mark.gpu_too
@pytest.mark.parametrize("stage", STAGES[1:])
def test_stopped_and_gone_on_is_to_the_bit_never_stopped(
    whole: dict[str, Path], data: Path, tmp_path: Path, stage: str
) -> None:
    config = small(data, tmp_path / "run", ds_config=stage)
    first = pretrain(dataclasses.replace(config, stop_after=2))
    assert (first["steps"], first["finished"]) == (2, False)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 0.0}\n{"step": 4, "lo')  # what a crash after the checkpoint leaves
    second = pretrain(config)
    assert (second["steps"], second["finished"]) == (4, True)
    assert_same_run(tmp_path / "run", whole[stage])


def test_the_same_command_again_goes_on_and_once_finished_does_nothing(
    data: Path, elsewhere: Path, whole: dict[str, Path]
) -> None:
    config = dataclasses.replace(small(data, Path("x")), out=None, stop_after=3)
    assert pretrain(config)["run"] == "runs/dyvit_tiny"
    assert pretrain(config)["finished"]
    assert_same_run(Path("runs/dyvit_tiny"), whole["zero1"])
    again = pretrain(dataclasses.replace(config, out=Path("runs/dyvit_tiny")))
    assert (again["steps"], again["finished"]) == (4, True)
    assert len(lines(Path("runs/dyvit_tiny"))) == 4


def test_a_damaged_checkpoint_costs_steps_and_nothing_else(
    whole: dict[str, Path], data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    config = small(data, run, save_every=1)
    pretrain(dataclasses.replace(config, stop_after=3))
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    (checkpoint / "optimizer-00000.safetensors").unlink()
    with caplog.at_level(logging.WARNING, "coma"):
        pretrain(config)
    assert "step-000003 is damaged (optimizer-00000.safetensors is missing)" in caplog.text
    assert_same_run(run, whole["zero1"])


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGUSR1, Preempted), (signal.SIGINT, KeyboardInterrupt)],
)
def test_a_signal_saves_the_step_and_leaves(
    whole: dict[str, Path], data: Path, tmp_path: Path, number: int, error: type[BaseException]
) -> None:
    def kill(now: Progress) -> None:
        if now.step == 2:
            os.kill(os.getpid(), number)

    config = small(data, tmp_path / "run")
    with pytest.raises(error):
        pretrain(config, kill)
    steps = len(lines(tmp_path / "run"))
    assert steps in (2, 3)  # noticed before or after the next step's sum
    checkpoint = latest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    assert checkpoint.name == f"step-{steps:06}"
    pretrain(config)
    assert_same_run(tmp_path / "run", whole["zero1"])


@pytest.mark.gpu_too
def test_micro_batches_add_up_to_the_batch(whole: dict[str, Path], data: Path, tmp_path: Path) -> None:
    file = tmp_path / "accumulate.json"
    file.write_text('{"zero_optimization": {"stage": 1}, "train_micro_batch_size_per_gpu": 2}')
    pretrain(small(data, tmp_path / "run", ds_config=str(file)))
    for mine, its in zip(lines(tmp_path / "run"), lines(whole["zero1"]), strict=True):
        assert mine["batch_digest"] == its["batch_digest"]
        assert mine["loss"] == pytest.approx(its["loss"], rel=1e-4 * LIKE)
        assert mine["grad_norm"] == pytest.approx(its["grad_norm"], rel=1e-3 * LIKE)


def test_bf16_trains(data: Path, tmp_path: Path, whole: dict[str, Path]) -> None:
    file = tmp_path / "bf16.json"
    file.write_text('{"zero_optimization": {"stage": 1}, "bf16": {"enabled": true}}')
    pretrain(small(data, tmp_path / "run", ds_config=str(file)))
    ours, theirs = (lines(run) for run in (tmp_path / "run", whole["zero1"]))
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=0.005)
    assert ours[0]["grad_norm"] == pytest.approx(theirs[0]["grad_norm"], rel=0.02)
    assert ours[-1]["loss"] < ours[0]["loss"]


@pytest.mark.parametrize(
    ("method", "network", "views"),
    [("mae", "MAE", "1 view of 1 of 4"), ("independent", "IndependentMasks", "2 views of 2 + 2 of 4")],
)
def test_other_methods_train_and_are_loaded_again(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str, network: str, views: str
) -> None:
    with caplog.at_level(logging.INFO, "coma"):
        assert pretrain(small(data, tmp_path / "run", method=method, steps=1))["finished"]
    assert f"dyvit_tiny, {method}: {views} units of 16 px" in caplog.text
    sizes = views.removeprefix("1 view of ").removeprefix("2 views of ")
    assert f"dyvit_tiny, {method}, views of {sizes} mask units" in (tmp_path / "run/report.html").read_text()
    assert type(load_autoencoder(tmp_path / "run")).__name__ == network


def test_a_step_is_logged_evaluated_and_drawn_before_it_is_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    effects: list[str] = []

    def watch(owner: Any, name: str) -> None:
        act = getattr(owner, name)

        def noted(*arguments: Any, **options: Any) -> Any:
            effects.append(name)
            return act(*arguments, **options)

        monkeypatch.setattr(owner, name, noted)

    watch(MetricsLog, "write")
    watch(loop, "evaluate")
    watch(ReconstructionPreviewer, "preview")
    watch(checkpoint, "save")
    pretrain(small(data, tmp_path / "run", steps=1, evaluate_every=1))
    assert effects == ["preview", "write", "evaluate", "write", "preview", "save"]


class Spoilt(torch.nn.Module):
    """Makes the loss of chosen calls NaN, as a damaged image or an overflow would."""

    def __init__(self, model: torch.nn.Module, spoil: set[int]) -> None:
        super().__init__()
        forward, calls = model.forward, iter(range(1, 1000))
        model.forward = lambda *inputs: forward(*inputs) * (float("nan") if next(calls) in spoil else 1.0)  # type: ignore[method-assign]


def spoil(monkeypatch: pytest.MonkeyPatch, calls: set[int]) -> None:
    def build(config: dict[str, Any]) -> torch.nn.Module:
        model = build_model(config)
        Spoilt(model, calls)
        return model

    monkeypatch.setattr(pretraining, "build_model", build)


@pytest.mark.gpu_too
@pytest.mark.parametrize("stage", ["zero0", "zero2"])
def test_a_step_without_a_finite_loss_is_skipped_and_its_samples_written_down(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    spoil(monkeypatch, {2})
    run = tmp_path / "run"
    pretrain(small(data, run, ds_config=stage))
    steps = lines(run)
    assert [line["loss"] is None for line in steps] == [False, True, False, False]
    assert [line.get("skipped", False) for line in steps] == [False, True, False, False]
    assert all(torch.isfinite(value).all() for value in weights_of(run).values())
    (noted,) = read_lines(run / "nonfinite.jsonl")
    assert noted["step"] == 2
    assert len(noted["samples"]) == len(noted["keys"]) == 4


def test_too_many_of_them_end_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, set(range(2, 100)))
    with pytest.raises(DivergedError, match=r"10 steps without a finite loss.*step 11, .*nonfinite.jsonl"):
        pretrain(small(data, tmp_path / "run", steps=20))
    assert len(lines(tmp_path / "run")) == 11


def test_as_many_far_apart_do_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nonfinite, "NONFINITE_WINDOW", 3)
    monkeypatch.setattr(nonfinite, "NONFINITE_LIMIT", 2)
    spoil(monkeypatch, {1, 4, 7})
    run = tmp_path / "run"
    config = small(data, run, steps=9)
    with caplog.at_level(logging.WARNING, "coma"):
        pretrain(dataclasses.replace(config, steps=9, stop_after=7))
    assert "step 7 skipped: the loss is not finite (1 of the last 3 steps, 2 end the run)" in caplog.text
    spoil(monkeypatch, {2})  # step 9, which a resumed run adds to what was before
    with pytest.raises(DivergedError, match=r"2 steps without a finite loss .* among the last 3, the last at step 9"):
        pretrain(config)


def test_damaged_samples_have_the_budget_of_the_option(data: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(data, tmp_path / "shards"))
    manifest = read_manifest(shards)
    for sample in range(12):
        path = manifest.folder / manifest.shards[int(manifest.shard_id[sample])]
        content = bytearray(path.read_bytes())
        middle = int(manifest.offset[sample] + manifest.size[sample] // 2)
        content[middle : middle + 40] = bytes(40)
        path.write_bytes(content)
    config = small(shards, tmp_path / "run", steps=6, evaluate_every=1)
    with pytest.raises(DataError, match=r"1[12] different .*--fault-budget.*fault_budget=10; "):
        pretrain(config)
    assert pretrain(dataclasses.replace(config, fault_budget=12))["finished"]  # it is the same run


def test_nothing_is_written_before_all_is_known_to_be_right(data: Path, elsewhere: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"model": "dyvit_tinny"},
        {"ds_config": "zero9"},
        {"image_size": 33},
        {"views": 9},
        {"batch_size": 4, "ds_config": "mine.json"},
    ]
    Path("mine.json").write_text('{"train_batch_size": 8}')
    config = dataclasses.replace(small(data, Path("x")), out=None)
    for fields in wrong:
        with pytest.raises(UsageError):
            pretrain(dataclasses.replace(config, **fields))
    assert [path.name for path in elsewhere.iterdir()] == ["mine.json"]


def test_devices_contradict_a_launcher(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="--devices 3 inside a launcher that started 2"):
        pretrain(small(data, tmp_path / "run", devices=3))


def test_two_processes_begin_and_one_goes_on(whole: dict[str, Path], data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = small(data, run, ds_config="zero3")
    result = pretrain(dataclasses.replace(config, devices=2, stop_after=2))
    assert (result["run"], result["steps"]) == (str(run), 2)
    assert pretrain(config)["finished"]
    for mine, its in zip(lines(run), lines(whole["zero3"]), strict=True):
        assert mine["batch_digest"] == its["batch_digest"]
        assert mine["loss"] == pytest.approx(its["loss"], rel=1e-3)
    assert_close(adam_of(run), adam_of(whole["zero3"]))


def adam_of(run: Path) -> dict[str, Tensor]:
    """The optimizer's state in a checkpoint that one process saved."""
    return weights_of(run, "optimizer-00000")


def assert_close(mine: dict[str, Tensor], its: dict[str, Tensor]) -> None:
    """Adam's steps to the last one, its moments within what summing in another order makes of them."""
    assert mine.keys() == its.keys()
    for name, value in mine.items():
        assert value.shape == its[name].shape
        scale = float(its[name].abs().max())
        tolerance = 0.0 if name.startswith("step/") else 1e-2 * scale
        torch.testing.assert_close(value, its[name], rtol=0.0, atol=tolerance, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_two_processes_stopped_and_gone_on(data: Path, tmp_path: Path, stage: str) -> None:
    through, stopped = (small(data, tmp_path / name, ds_config=stage, devices=2) for name in ("a", "b"))
    pretrain(through)
    pretrain(dataclasses.replace(stopped, stop_after=2))
    pretrain(stopped)
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize(
    "stages", [("zero1",) * 3, ("zero2",) * 3, ("zero3",) * 3, ("zero0", "zero3", "zero1")], ids="-".join
)
def test_two_processes_then_one_then_two(data: Path, tmp_path: Path, stages: tuple[str, ...]) -> None:
    """With a rate and a decay that show within a few steps which parameters decay."""
    fields: dict[str, Any] = {"steps": 16, "base_lr": 0.05, "weight_decay": 5.0}
    through, changed = (small(data, tmp_path / name, **fields) for name in ("a", "b"))
    pretrain(dataclasses.replace(through, ds_config=stages[0], devices=2))
    for devices, stage, stop_after in zip((2, 1, 2), stages, (3, 3, None), strict=True):
        pretrain(dataclasses.replace(changed, ds_config=stage, devices=devices, stop_after=stop_after))
    pairs = list(zip(lines(tmp_path / "a"), lines(tmp_path / "b"), strict=True))
    assert len(pairs) == 16
    for its, mine in pairs:
        assert mine["batch_digest"] == its["batch_digest"]
        assert mine["loss"] == pytest.approx(its["loss"], rel=1e-3)
    mine, its = (weights_of(tmp_path / name) for name in "ba")
    for name, value in mine.items():
        torch.testing.assert_close(value, its[name], rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.slow
def test_what_fails_in_a_launched_process_is_this_ones_exit_code(data: Path, elsewhere: Path) -> None:
    config = PretrainConfig(data=data, out=Path("run"), model="dyvit_tinny", devices=2, batch_size=4)
    with pytest.raises(SystemExit) as caught:
        pretrain(config)
    assert caught.value.code == 2
    assert not list(elsewhere.iterdir())


def test_a_run_without_a_checkpoint_begins_again(whole: dict[str, Path], data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole["zero1"], run)
    shutil.rmtree(run / "checkpoints")
    pretrain(dataclasses.replace(small(data, run)))
    assert_same_run(run, whole["zero1"])


def test_what_a_killed_session_was_writing_is_cleared_away(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(small(data, run, stop_after=1))
    left = [run / "checkpoints" / ".latest.ab12.coma-tmp", run / ".config.json.ab12.coma-tmp"]
    mine = run / ".notes.coma-tmp"
    for file in (*left, mine):
        file.write_text("half")
    pretrain(small(data, run, stop_after=1))
    assert not any(file.exists() for file in left)
    assert mine.exists()
