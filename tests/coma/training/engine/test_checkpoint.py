"""Checkpoints of a small network: whole, checked, and the one before when the newest is damaged."""

from __future__ import annotations

import errno
import json
import logging
import pickle
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_engine import Toy, engine_of, inputs

from coma.errors import ComaError, UsageError
from coma.runs.read import FORMAT, latest_checkpoint
from coma.training.config.ds_config import read_ds_config
from coma.training.engine import checkpoint
from coma.training.engine.checkpoint import Retention, TrainingState
from coma.training.engine.engine import dispose, full_weights, optimizer_step, set_learning_rate
from coma.training.processes.world import World, joined


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with joined(None) as alone:
        yield alone


@pytest.fixture(params=["zero0", "zero1", "zero2", "zero3"])
def engine(request: pytest.FixtureRequest, world: World) -> Iterator[Any]:
    torch.manual_seed(0)
    made = engine_of(Toy(), read_ds_config(request.param))
    yield made
    dispose(made)


def state(step: int) -> TrainingState:
    return TrainingState(step=step, fingerprint="f", seed=3, samples=4 * step, world_size=1)


def train(engine: Any, steps: range) -> None:
    for step in steps:
        set_learning_rate(engine, 0.1 / step)
        engine.backward(engine(inputs(step)))
        optimizer_step(engine)


def save(engine: Any, world: World, run: Path, step: int) -> Path:
    return checkpoint.save(engine, world, run, state(step), full_weights(engine))


@pytest.mark.gpu_too
def test_what_is_loaded_goes_on_as_what_was_saved_would_have(engine: Any, world: World, tmp_path: Path) -> None:
    train(engine, range(1, 4))
    folder = save(engine, world, tmp_path, 3)
    assert folder == latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-000003"
    readers = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert readers == {folder.stat().st_mode & 0o666}  # whoever may look into the folder
    saved = load_file(folder / "weights.safetensors")
    train(engine, range(4, 6))
    went_on = full_weights(engine)
    assert checkpoint.load(engine, world, folder) == state(3)
    for name, value in full_weights(engine).items():
        assert torch.equal(value, saved[name])
    train(engine, range(4, 6))
    for name, value in full_weights(engine).items():
        assert torch.equal(value, went_on[name])


def damage_truncate(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def damage_flip(folder: Path) -> None:
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def damage_remove(folder: Path) -> None:
    (folder / "optimizer-00000.safetensors").unlink()


def damage_manifest(folder: Path) -> None:
    (folder / "checkpoint.json").write_text("{")


def damage_optimizer(folder: Path) -> None:
    path = folder / "optimizer-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_pickle(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(pickle.dumps({"weights": [1.0]}))


def damage_list(folder: Path) -> None:
    (folder / "checkpoint.json").write_text("[]")


def damage_samples(folder: Path) -> None:
    """Still JSON, and of the samples of another step."""
    text = (folder / "checkpoint.json").read_text()
    (folder / "checkpoint.json").write_text(re.sub(r'"samples": \d', '"samples": 7', text))


def damage_format(folder: Path) -> None:
    text = (folder / "checkpoint.json").read_text()
    (folder / "checkpoint.json").write_text(text.replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'))


def damage_name(folder: Path) -> None:
    text = (folder / "checkpoint.json").read_text()
    (folder / "checkpoint.json").write_text(text.replace('"xxh3_64": "', '"xxh3_65": "'))


DAMAGES = {
    damage_truncate: r"weights.safetensors has \d+ bytes instead of \d+",
    damage_flip: "the bytes of weights.safetensors have changed",
    damage_optimizer: "the bytes of optimizer-00000.safetensors have changed",
    damage_remove: "optimizer-00000.safetensors is missing",
    damage_pickle: r"weights.safetensors has \d+ bytes instead of \d+",
    damage_manifest: "the bytes of checkpoint.json have changed",
    damage_list: "the bytes of checkpoint.json have changed",
    damage_samples: "the bytes of checkpoint.json have changed",
    damage_format: "the bytes of checkpoint.json have changed",
    damage_name: "the bytes of checkpoint.json have changed",
}


@pytest.mark.parametrize("engine", ["zero1"], indirect=True)
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_stands_in_for_a_damaged_one(
    engine: Any,
    world: World,
    tmp_path: Path,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert checkpoint.newest_whole(tmp_path, world) is None
    first, second = (save(engine, world, tmp_path, step) for step in (1, 2))
    assert checkpoint.newest_whole(tmp_path, world) == second
    damage(second)
    with caplog.at_level(logging.WARNING, "coma"):
        assert checkpoint.newest_whole(tmp_path, world) == first
    (said,) = [record.getMessage() for record in caplog.records]
    assert re.search(rf"step-000002 is damaged \({DAMAGES[damage]}\)", said)
    assert latest_checkpoint(tmp_path) == first  # for the commands that read the newest
    damage(first)
    with pytest.raises(ComaError, match="every checkpoint"):
        checkpoint.newest_whole(tmp_path, world)


@pytest.mark.parametrize("engine", ["zero1"], indirect=True)
def test_one_that_the_drive_does_not_give_back_is_passed_over(
    engine: Any,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = (save(engine, world, tmp_path, step) for step in (1, 2))
    digest = checkpoint.hash_file

    def fails(path: Path) -> str:  # no drive here does
        if path.is_relative_to(second):
            raise OSError(errno.EIO, "Input/output error")
        return digest(path)

    monkeypatch.setattr(checkpoint, "hash_file", fails)
    with caplog.at_level(logging.WARNING, "coma"):
        assert checkpoint.newest_whole(tmp_path, world) == first
    assert "step-000002 is damaged (optimizer-00000.safetensors cannot be read: input/output error)" in caplog.text


@pytest.mark.parametrize("engine", ["zero1"], indirect=True)
def test_a_damaged_one_is_not_kept_in_place_of_a_whole_one(engine: Any, world: World, tmp_path: Path) -> None:
    first, second = (save(engine, world, tmp_path, step) for step in (1, 9))
    damage_flip(second)
    assert checkpoint.newest_whole(tmp_path, world) == first
    weights = full_weights(engine)
    newer = [checkpoint.save(engine, world, tmp_path, state(step), weights, Retention(last=1)) for step in (2, 3)]
    assert checkpoint.newest_whole(tmp_path, world) == newer[-1]
    assert not newer[0].exists()


@pytest.mark.parametrize("engine", ["zero1"], indirect=True)
def test_as_many_are_kept_as_asked_and_nothing_else_is_touched(engine: Any, world: World, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / ".step-000009.tmp").mkdir(parents=True)
    (folder / "step-best").mkdir()
    (folder / "mine").mkdir()
    for step in (1, 2, 10):
        save(engine, world, tmp_path, step)
    others = {"step-best", "mine", "latest"}
    assert {path.name for path in folder.iterdir()} == {"step-000002", "step-000010", *others}
    assert (folder / "latest").read_text() == "step-000010\n"
    weights = full_weights(engine)
    retention = Retention(last=1, is_milestone=lambda step: step == 2)
    checkpoint.save(engine, world, tmp_path, state(11), weights, retention)
    assert {path.name for path in folder.iterdir()} == {"step-000002", "step-000011", *others}


@pytest.mark.parametrize("engine", ["zero1"], indirect=True)
def test_a_save_that_finds_no_room_says_so_and_leaves_the_last_one(engine: Any, world: World, tmp_path: Path) -> None:
    train(engine, range(1, 2))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room, left in ((100, "there is none before it"), (None, ""), (100, "step-000001 is whole")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room or before[0], before[1]))
        try:
            if room is None:
                first = save(engine, world, tmp_path, 1)
                continue
            with pytest.raises(ComaError, match=rf"step 2 could not be written.*too large.*{left}"):
                save(engine, world, tmp_path, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not list((tmp_path / "checkpoints").glob(".*"))
    assert latest_checkpoint(tmp_path) == checkpoint.newest_whole(tmp_path, world) == first


@pytest.mark.parametrize("engine", ["zero1"], indirect=True)
@pytest.mark.parametrize(("found", "age"), [(None, "an older"), (FORMAT - 1, "an older"), (FORMAT + 1, "a newer")])
def test_another_format_is_refused(engine: Any, world: World, tmp_path: Path, found: int | None, age: str) -> None:
    folder = save(engine, world, tmp_path, 1)
    content = json.loads((folder / "checkpoint.json").read_text())
    assert (content.pop("format"), content["samples"]) == (FORMAT, 4)
    del content["xxh3_64"]  # which early ones did not have
    if found is not None:
        content["format"] = found
    (folder / "checkpoint.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=rf"step-000001 is of format {found or 1}, from {age}.*another --out"):
        checkpoint.newest_whole(tmp_path, world)


@pytest.mark.parametrize("engine", ["zero1"], indirect=True)
def test_a_save_that_dies_leaves_the_last_one_in_place(
    engine: Any, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save(engine, world, tmp_path, 1)

    def die(*_: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", die)
        with pytest.raises(ComaError, match=r"step 2 .*no space.*step-000001 is whole"):
            save(engine, world, tmp_path, 2)
    assert latest_checkpoint(tmp_path) == checkpoint.newest_whole(tmp_path, world) == first
    second = save(engine, world, tmp_path, 2)
    assert latest_checkpoint(tmp_path) == second
    assert not list((tmp_path / "checkpoints").glob(".*"))
