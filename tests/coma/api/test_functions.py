"""The commands as functions: what they make and return, and that a program that calls them stays as it was."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import gc
import logging
import os
import random
import re
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from drawn import draw_images

import coma
from coma.errors import Preempted, UsageError
from coma.runs.names import STOP_NAME
from coma.training import PretrainConfig

ROOT = Path(__file__).parents[3]


def lines_of(page: str) -> str:
    """The lines with which a page begins in Python."""
    found = re.search(r"```python\n(import coma\n.*?)```", (ROOT / page).read_text(), re.S)
    assert found
    return found[1]


def test_the_readme_has_the_lines_of_the_page() -> None:
    assert ast.dump(ast.parse(lines_of("README.md"))) == ast.dump(ast.parse(lines_of("docs/python.md")))


def test_the_first_lines_of_the_page_run(
    elsewhere: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_images(elsewhere / "photos", 40, classes=("cat", "dog"))
    with monkeypatch.context() as patch:  # the run alone is made small
        pretrain = coma.pretrain
        patch.setattr("coma.api.functions.pretrain", lambda data, **_: pretrain(data, **small))
        names: dict[str, Any] = {}
        exec(lines_of("docs/python.md"), names)
    assert names["shards"].splits == {"train": 36, "val": 4}
    assert names["run"].finished
    assert "tested_on     val" in capsys.readouterr().out
    timm.create_model("local-dir:exports/photos", pretrained=True)


def test_shards_are_made_previewed_indexed_and_verified(tmp_path: Path) -> None:
    source = draw_images(tmp_path / "photos", 6, classes=("cat", "dog"))
    (source / "cat" / "bad.jpg").write_bytes(b"no image")
    preview = coma.shard(source, tmp_path / "out", dry_run=True, workers=1)
    assert not (tmp_path / "out").exists()
    shown = []
    done = coma.shard(source, tmp_path / "out", workers=1, progress=shown.append)
    assert (preview.found, done.found, done.kept, done.set_aside) == (7, 7, 6, 1)
    assert (preview.shards, done.shards, done.splits) == (1, 1, {"train": 6})
    assert done.quarantine is not None
    assert done.quarantine.is_file()
    assert shown[-1].images == 7
    (tmp_path / "tars").mkdir()
    tar = next((tmp_path / "out" / "train").glob("*.tar"))
    (tmp_path / "tars" / "photos.tar").write_bytes(tar.read_bytes())
    indexed = coma.index(tmp_path / "tars", tmp_path / "index", workers=1)
    assert (indexed.kept, indexed.quarantine) == (6, None)
    assert coma.verify(indexed, decode=True).ok
    tar.write_bytes(tar.read_bytes()[:-2000])
    damaged = coma.verify(done)
    assert not damaged.ok
    assert damaged.problems[0].shard == tar.name


def test_a_run_is_scored_drawn_exported_and_finetuned(run: Any, data: Path, tmp_path: Path) -> None:
    score, neighbours = coma.probe(run), coma.knn(run.run, batch_size=8)
    assert (score.protocol, neighbours.protocol) == ("logistic", None)
    assert score.interval[0] <= score.accuracy <= score.interval[1]
    assert neighbours.metrics == run.metrics
    picture = coma.reconstruct(run, out=tmp_path / "picture.png", count=2)
    drawn = picture._repr_png_()
    assert drawn is not None
    assert drawn.startswith(b"\x89PNG")
    one = coma.reconstruct(run, next(iter(picture_files(tmp_path))), out=tmp_path / "one.png")
    assert one.picture.is_file()
    exported = coma.export(run, tmp_path / "export")
    assert coma.knn(exported, data).accuracy == neighbours.accuracy
    tuned = coma.finetune(exported, data, out=tmp_path / "tuned", steps=1, batch_size=4, workers=1, rand_augment=0)
    assert (tuned.steps, tuned.finished) == (1, True)


def picture_files(folder: Path) -> list[Path]:
    return sorted(draw_images(folder / "shown", 2).iterdir())


def test_results_show_themselves(run: Any) -> None:
    assert dataclasses.is_dataclass(run)
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.loss = 0
    assert os.fspath(run) == str(run.run)
    lines = repr(run).splitlines()
    assert lines[0] == "TrainingResult"
    assert f"  steps         {run.steps}" in lines
    shown = run._repr_html_()
    assert "data:image/png;base64," in shown
    hostile = dataclasses.replace(run, run=Path("<script>\x1b[2J"), picture=None)
    assert "&lt;script&gt;\\x1b[2J" in hostile._repr_html_()
    assert "<script>" not in hostile._repr_html_()
    assert "\x1b" not in repr(hostile)


def test_the_program_stays_as_it_was(run: Any, data: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    expected = (torch.rand(3, dtype=torch.float32).tolist(), np.random.rand(), random.random())
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    variables, loggers = dict(os.environ), [*logging.getLogger().handlers]
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        with torch.no_grad():
            again = coma.pretrain(data, out=tmp_path / "again", **small)
            coma.knn(again)
            assert not torch.is_grad_enabled()
        assert (torch.get_default_dtype(), torch.get_default_device().type) == (torch.float64, "meta")
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert again.loss == run.loss
    assert (torch.rand(3).tolist(), np.random.rand(), random.random()) == expected
    assert dict(os.environ) == variables
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert not torch.distributed.is_initialized()
    assert logging.getLogger("coma").handlers == []
    assert logging.getLogger().handlers == loggers


def test_a_run_of_another_kind_leaves_nothing_behind(run: Any, data: Path, tmp_path: Path, small: Any) -> None:
    """A run is what it is in a process of its own, to the last bit, although DeepSpeed has partitioned before."""
    other = coma.pretrain(data, out=tmp_path / "other", ds_config="zero3", views=3, seed=1, **small)
    again = coma.pretrain(data, out=tmp_path / "again", **small)
    assert other.loss != again.loss == run.loss


def test_a_process_group_of_the_caller_stays(run: Any, data: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        inside = coma.pretrain(data, out=tmp_path / "inside", **small)
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
    after = coma.pretrain(data, out=tmp_path / "after", **small)
    assert inside.loss == after.loss == run.loss


def test_a_run_in_a_thread_is_that_of_the_main_thread(run: Any, data: Path, tmp_path: Path, small: Any) -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(coma.pretrain(data, out=tmp_path / "run", **small)))
    thread.start()
    thread.join()
    assert results[0].loss == run.loss


def test_a_second_run_at_the_same_time_is_refused(data: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    refused: list[str] = []

    def another(_: Any) -> None:
        def train() -> None:
            try:
                coma.pretrain(data, out=tmp_path / "second", **small)
            except coma.errors.UsageError as error:
                refused.append(str(error))

        thread = threading.Thread(target=train)
        thread.start()
        thread.join()

    coma.pretrain(data, out=tmp_path / "first", progress=another, **small)
    assert len(refused) == 2
    assert "a run is going on in another thread" in refused[0]
    assert not (tmp_path / "second").exists()


def test_a_file_stops_a_run_in_a_thread(data: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    errors: list[BaseException] = []

    def train() -> None:
        try:
            coma.pretrain(
                data,
                out=tmp_path / "run",
                progress=lambda _: (tmp_path / "run" / STOP_NAME).touch(),
                **{**small, "steps": 50},
            )
        except Preempted as error:
            errors.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_an_event_loop_may_be_running(run: Any, data: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    async def cell() -> list[Any]:
        here = coma.pretrain(data, out=tmp_path / "here", **small)
        there = await asyncio.to_thread(coma.pretrain, data, out=tmp_path / "there", **small)
        return [here.loss, there.loss, (await asyncio.to_thread(coma.knn, there)).step]

    assert asyncio.run(cell()) == [run.loss, run.loss, 2]


def test_ctrl_c_saves_and_the_same_call_resumes(data: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    steps: list[int] = []

    def press(now: Any) -> None:
        steps.append(now.step)
        if now.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    call = {**small, "steps": 5, "out": tmp_path / "run", "progress": press}
    with pytest.raises(KeyboardInterrupt):
        coma.pretrain(data, **call)
    assert not torch.distributed.is_initialized()
    done = coma.pretrain(data, **call)
    assert (done.steps, done.finished) == (5, True)
    assert steps[-1] == 5
    assert len(steps) in (5, 6)  # the step after the signal may be taken first


@pytest.mark.slow  # two processes, each of which imports torch
def test_several_processes_from_a_thread(data: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    results: list[Any] = []
    steps: list[int] = []

    def train() -> None:
        results.append(
            coma.pretrain(data, out=tmp_path / "run", devices=2, progress=lambda now: steps.append(now.step), **small)
        )
        try:
            coma.pretrain(data, out=tmp_path / "none", devices=2, ds_config=tmp_path / "none.json", **small)
        except coma.errors.UsageError as error:
            results.append(str(error))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert results[0].finished
    assert steps == [1, 2]
    assert "none.json" in results[1]


def test_options_come_from_a_file_or_another_run(
    run: Any, elsewhere: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[PretrainConfig] = []
    monkeypatch.setattr("coma.training.pretrain", lambda config, _: made.append(config) or {})
    (elsewhere / "run.yaml").write_text("model: dyvit_nano\nepochs: 3\nviews: 3\ncompile: true\nlog-to: wandb,mlflow\n")
    for keywords in ({"config": "run.yaml", "steps": 4, "compile": False}, {"like": run, "seed": 5}):
        with suppress(TypeError):  # of a result that is empty
            coma.pretrain(**keywords)
    of_file, of_run = made
    assert of_file == PretrainConfig(model="dyvit_nano", steps=4, views=3, log_to="wandb,mlflow")
    assert (of_run.steps, of_run.image_size, of_run.seed) == (small["steps"], small["image_size"], 5)
    assert of_run.out == Path("runs/run-seed-5")
    with pytest.raises(UsageError, match="config and like exclude each other"):
        coma.pretrain(config="run.yaml", like=run)
    with pytest.raises(UsageError, match="did you mean 'photographs'"):
        coma.pretrain(config="photograph")


OTHERS = [pytest.param(stage, marks=pytest.mark.slow) for stage in ("zero2", "zero3_nvme")]


@pytest.mark.parametrize("stage", ["zero3", *OTHERS])
def test_nothing_of_a_run_stays_in_the_process(data: Path, tmp_path: Path, small: dict[str, Any], stage: str) -> None:
    def left() -> tuple[int, int, int]:
        gc.collect()
        engines = sum(type(each).__name__ == "DeepSpeedEngine" for each in gc.get_objects())
        return engines, threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    coma.pretrain(data, out=tmp_path / "first", ds_config=stage, **small)  # imports, and what stays for all
    before = left()
    coma.pretrain(data, out=tmp_path / "second", ds_config=stage, **small)
    assert left() == before
