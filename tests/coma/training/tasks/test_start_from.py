"""`--init`: going on pre-training from an export, its weights and nothing else."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from small_runs import lines, small

from coma.errors import ComaError, DataError, UsageError
from coma.exports.export import export_run
from coma.pipeline import Preprocessing
from coma.shards.manifest import read_manifest
from coma.training import PretrainConfig, pretrain
from coma.training.tasks.pretrained import PretrainedBackbone
from coma.training.tasks.pretraining import Pretraining
from coma.training.tasks.transfer import spread, transfer


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


@pytest.mark.parametrize("stage", ["zero1", pytest.param("zero3", marks=pytest.mark.slow)])
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
        (
            {"model": "dyvit_tiny"},
            r"an export of 2 steps of dyvit_nano, of which \d% .*\[32, 12\] for \[64, 12\].*give --model dyvit_nano",
        ),
        ({"model": "vit_tiny_patch16_224"}, "and --model is vit_tiny_patch16_224: give --model dyvit_nano"),
        ({"patch_size": None, "image_size": 64}, "patches of 2 pixels, and this run's are 4"),
    ):
        refused(dataclasses.replace(config, **fields), UsageError, named)
    export = json.loads((whole / "config.json").read_text())
    assert (export["coma"]["model"], export["coma"]["patch_size"]) == ("dyvit_nano", 2)


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


def grown(folder: Path, depth: int) -> Path:
    """A DyViT of timm with so many blocks in stage 3."""
    torch.manual_seed(2)
    model = timm.create_model("dyvit_tiny", img_size=32, patch_size=2, depths=(1, 1, depth, 1), num_classes=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return folder


@pytest.mark.parametrize("depth", [4, 9])
def test_another_depth_takes_blocks_evenly_or_adds_some_without_effect(data: Path, tmp_path: Path, depth: int) -> None:
    folder = grown(tmp_path / "dyvit", depth)
    config = dataclasses.replace(small(data, tmp_path / "run", init=folder), model="dyvit_tiny")
    task = Pretraining(config, read_manifest(data))
    model, source = task.model.backbone, timm.create_model(f"local-dir:{folder}", pretrained=True)
    (told,) = task.facts()["init"]["blocks"]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        same = torch.allclose(model.eval()(images), source.eval()(images), atol=1e-5)
    if depth == 4:
        assert told == "stage 3: 4 blocks in 6; without effect at first: 2, 5"
        assert same
        task.model(images, torch.randperm(task.model.units).repeat(2, 1)).backward()
        for name, parameter in model.named_parameters():
            silent = name.startswith(("stages.2.blocks.1.", "stages.2.blocks.4.")) and ".proj." not in name
            learns = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            assert learns or silent, name
    else:
        assert told == "stage 3: 6 of 9 blocks: 1, 3, 4, 6, 7, 9"
        ours, its = (each.state_dict() for each in (model, source))
        for place, origin in enumerate((0, 2, 3, 5, 6, 8)):
            name = "stages.2.blocks.{}.mlp.fc1.weight"
            assert torch.equal(ours[name.format(place)], its[name.format(origin)])
    assert not task.facts()["init"]["resized"]


@pytest.mark.parametrize(("have", "want"), [(1, 1), (1, 3), (3, 1), (14, 8), (8, 14), (6, 6), (2, 5)])
def test_every_block_finds_its_place_once_and_in_order(have: int, want: int) -> None:
    origins = spread(have, want)
    taken = [each for each in origins if each is not None]
    assert len(origins) == want
    assert len(taken) == min(have, want)
    assert taken == sorted(set(taken))
    assert taken[0] == 0
    if min(have, want) > 1:
        assert taken[-1] == have - 1
        assert origins[-1] == have - 1


def test_a_run_is_taken_with_its_decoder_and_another_patch_size_is_resized(
    first: Path, data: Path, tmp_path: Path
) -> None:
    trained = load_file(first / "checkpoints" / "step-000002" / "weights.safetensors")
    for source in (first, first / "checkpoints" / "step-000002"):
        network = Pretraining(small(data, tmp_path / "run", init=source), read_manifest(data)).model
        assert all(torch.equal(value, trained[name]) for name, value in network.state_dict().items())
    config = dataclasses.replace(small(data, tmp_path / "run", init=first), patch_size=4, image_size=64)
    task = Pretraining(config, read_manifest(data))
    start = task.facts()["init"]
    assert start["resized"] == ["patch embedding, 2 to 4 pixels"]
    assert (start["left"], start["new"]) == (["decoder"], ["decoder"])
    # Twice the image in patches of twice the side: nearly the tokens that there were.
    small_images = torch.randn(1, 3, 8, 8)
    small_images = torch.nn.functional.interpolate(small_images, size=(32, 32), mode="bicubic")
    images = torch.nn.functional.interpolate(small_images, size=(64, 64), mode="bilinear", align_corners=False)
    source = Pretraining(small(data, tmp_path / "run", init=first), read_manifest(data)).model.backbone
    with torch.no_grad():
        x, y = task.model.backbone.eval()(images), source.eval()(small_images)
    assert torch.nn.functional.cosine_similarity(x, y).item() > 0.98


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
        (tmp_path / "absent", "no run at"),
        (first / "checkpoints", "is not a run folder"),
        (first / "config.json", "it is a file"),
    ):
        refused(small(data, tmp_path / "run", init=folder), DataError, named)


def refused(config: PretrainConfig, error: type[ComaError], named: str) -> None:
    with pytest.raises(error, match=named) as caught:
        pretrain(config)
    assert "\n" not in str(caught.value)
    assert config.out is not None
    assert not config.out.exists()


def float_images(*values: float) -> Preprocessing:
    """Channels whose mean and deviation are both so much."""
    return Preprocessing(values, values, dtype="float32")


def test_images_in_small_units_are_made_up_for_as_any_others() -> None:
    def network() -> Any:
        return timm.create_model("dyvit_nano", img_size=32, patch_size=2, in_chans=2, num_classes=0).eval()

    before, here, first, then = float_images(1e-6, 3e-6), float_images(2e-6, 1e-6), network(), network()
    source = PretrainedBackbone("there", "a run", "dyvit_nano", 2, 32, first.state_dict(), preprocessing=before)
    assert transfer(then, source, "--init", here).pixels
    images = torch.rand(2, 2, 32, 32) * 1e-5
    of_each = (
        net((images - torch.tensor(like.mean).view(2, 1, 1)) / torch.tensor(like.std).view(2, 1, 1))
        for net, like in ((first, before), (then, here))
    )
    torch.testing.assert_close(*of_each, atol=1e-4, rtol=1e-4)


def test_a_patch_embedding_of_other_channels_is_not_taken_for_one_of_the_same_size() -> None:
    """Four pixels a side of one channel are as many numbers as two of four channels."""
    first = timm.create_model("dyvit_nano", img_size=64, patch_size=4, in_chans=1, num_classes=0)
    then = timm.create_model("dyvit_nano", img_size=32, patch_size=2, in_chans=4, num_classes=0)
    own = then.state_dict()["patch_embed.proj.weight"].clone()
    source = PretrainedBackbone(
        "there", "a run", "dyvit_nano", 4, 64, first.state_dict(), preprocessing=float_images(1.0)
    )
    assert "patch embedding" in transfer(then, source, "--init", float_images(1.0, 1.0, 1.0, 1.0)).new
    assert torch.equal(then.state_dict()["patch_embed.proj.weight"], own)
