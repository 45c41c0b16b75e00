"""`--init`: going on pre-training from an export, its weights and nothing else."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import lines, small

from coma.errors import ComaError, DataError, UsageError
from coma.exports.export import export_run
from coma.training import PretrainConfig, pretrain


@pytest.fixture(scope="module")
def first(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    run = tmp_path_factory.mktemp("first") / "run"
    pretrain(small(data, run, steps=2))
    return run


@pytest.fixture(scope="module")
def whole(first: Path) -> Path:
    """Its export, with the decoder."""
    export_run(first, first.with_name("whole"), with_decoder=True)
    return first.with_name("whole")


def began_with(config: PretrainConfig) -> dict[str, torch.Tensor]:
    """The weights after a first step that changes none: its learning rate is nearly nothing."""
    pretrain(dataclasses.replace(config, steps=1, base_lr=1e-30, weight_decay=0.0))
    assert config.out is not None
    return load_file(config.out / "checkpoints" / "step-000001" / "weights.safetensors")


@pytest.mark.parametrize("stage", ["zero1", "zero3"])
def test_a_run_begins_with_the_weights_of_the_one_before(
    first: Path, whole: Path, data: Path, tmp_path: Path, stage: str
) -> None:
    trained = load_file(first / "checkpoints" / "step-000002" / "weights.safetensors")
    config = small(data, tmp_path / "run", init=whole, seed=5, ds_config=stage)
    taken_up = began_with(dataclasses.replace(config, image_size=48))
    assert taken_up.keys() == trained.keys()
    for name, value in taken_up.items():
        torch.testing.assert_close(value, trained[name], atol=1e-7, rtol=0)
    assert [line["step"] for line in lines(tmp_path / "run")] == [1]
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    assert content["config"]["init"] == str(whole)
    assert len(content["resolved"]["init_digest"]) == 16


def test_without_a_decoder_it_begins_anew(first: Path, data: Path, tmp_path: Path) -> None:
    export_run(first, tmp_path / "bare")
    trained = load_file(first / "checkpoints" / "step-000002" / "weights.safetensors")
    taken_up = began_with(small(data, tmp_path / "run", init=tmp_path / "bare", seed=5))
    for name, value in taken_up.items():
        same = torch.allclose(value, trained[name], atol=1e-7, rtol=0)
        assert same or name.startswith("decoder.")
    assert not torch.allclose(taken_up["decoder.head.weight"], trained["decoder.head.weight"], atol=1e-3)


def test_the_same_weights_are_the_same_run(first: Path, whole: Path, data: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(whole, moved)
    config = small(data, tmp_path / "run", init=moved, steps=2)
    pretrain(dataclasses.replace(config, stop_after=1))
    assert pretrain(dataclasses.replace(config, init=whole))["finished"]
    export_run(first, moved)
    for other in (moved, None):
        with pytest.raises(UsageError, match="holds another run: --init's weights"):
            pretrain(dataclasses.replace(config, init=other))


def test_contradictions_name_both(whole: Path, data: Path, tmp_path: Path) -> None:
    config = small(data, tmp_path / "run", init=whole)
    for fields, named in (
        ({"model": "dyvit_nano"}, "holds a dyvit_tiny, and --model is dyvit_nano"),
        ({"patch_size": 1, "image_size": 16}, "patches of 2 pixels, and this run's are 1"),
        ({"patch_size": None, "image_size": 64}, "patches of 2 pixels, and this run's are 4"),
    ):
        refused(dataclasses.replace(config, **fields), UsageError, named)
    export = json.loads((whole / "config.json").read_text())
    assert (export["coma"]["model"], export["coma"]["patch_size"]) == ("dyvit_tiny", 2)


def test_a_decoder_of_another_method_is_refused_where_it_differs(data: Path, tmp_path: Path) -> None:
    vit: dict[str, Any] = {"model": "vit_tiny_patch16_224", "patch_size": 8}
    run = dataclasses.replace(small(data, tmp_path / "vit", method="mae", steps=1), **vit)
    pretrain(run)
    export_run(tmp_path / "vit", tmp_path / "out", with_decoder=True)
    going_on = dataclasses.replace(run, init=tmp_path / "out", out=tmp_path / "more")
    refused(dataclasses.replace(going_on, method="coma"), UsageError, "decoder of --method mae.*--method coma")
    taken_up = began_with(dataclasses.replace(going_on, image_size=64))  # positions follow the image's size
    trained = load_file(tmp_path / "vit" / "checkpoints" / "step-000001" / "weights.safetensors")
    for name, value in taken_up.items():
        torch.testing.assert_close(value, trained[name], atol=1e-7, rtol=0)


class Bomb:
    """Whoever unpickles it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "decoder.safetensors"])
@pytest.mark.parametrize("saving", [pickle.dump, torch.save])
def test_a_pickle_is_refused_and_never_run(whole: Path, data: Path, tmp_path: Path, name: str, saving: Any) -> None:
    written = tmp_path / "written"
    shutil.copytree(whole, tmp_path / "export")
    if name == "pytorch_model.bin":
        (tmp_path / "export" / "model.safetensors").unlink()
    with (tmp_path / "export" / name).open("wb") as file:
        saving({"norm.weight": Bomb(written)}, file)
    config = small(data, tmp_path / "run", init=tmp_path / "export")
    refused(config, DataError, "model.safetensors" if name != "decoder.safetensors" else name)
    assert not written.exists()
    pickle.loads(pickle.dumps(Bomb(written)))
    assert written.exists()  # it would have been


def test_what_is_no_export_is_named(first: Path, data: Path, tmp_path: Path) -> None:
    for folder, named in (
        (tmp_path / "absent", "no export at"),
        (first, "was not written by `coma export`"),
        (first / "config.json", "it is a file"),
    ):
        refused(small(data, tmp_path / "run", init=folder), DataError, named)


def refused(config: PretrainConfig, error: type[ComaError], named: str) -> None:
    with pytest.raises(error, match=named) as caught:
        pretrain(config)
    assert "\n" not in str(caught.value)
    assert config.out is not None
    assert not config.out.exists()
