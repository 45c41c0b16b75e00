"""`--init` with a model of timm: the run begins with that very model, and says what it took, resized and left."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from drawn import sharded
from small_runs import lines, small, weights_of
from torch import Tensor

from coma.errors import ComaError, DataError, UsageError
from coma.evaluation.features import held_out_fifth, pool
from coma.evaluation.knn import knn_accuracy
from coma.evaluation.score_run import score_run
from coma.exports.export import export_run
from coma.pipeline import MEAN, STD, Stream
from coma.runs.read import load_autoencoder, read_config
from coma.shards.manifest import read_manifest
from coma.training import FinetuneConfig, PretrainConfig, finetune, pretrain
from coma.training.tasks.finetuning import Finetuning
from coma.training.tasks.pretraining import Pretraining

TINY = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 96, "num_heads": 3}
VITS: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("vit_tiny_patch16_224", {"num_classes": 7}),
    "no class token, norm after the average": (
        "vit_tiny_patch16_224",
        {"class_token": False, "global_pool": "avg", "num_classes": 0},
    ),
    "registers, layer scale": ("vit_small_patch14_reg4_dinov2", {"num_classes": 0}),
    "SwiGLU": ("vit_giant_patch14_dinov2", {"num_classes": 0, "mlp_ratio": 2.0}),
    "norm before, quick GELU, no bias": ("vit_base_patch16_clip_quickgelu_224", {"num_classes": 3}),
    "attention pooling": ("vit_base_patch16_siglip_224", {"num_classes": 0}),
    "norms of queries and keys": ("vit_tiny_patch16_224", {"qk_norm": True, "dynamic_img_size": True}),
}
"""Of kinds whose every difference a network of ours has to take over."""


def saved(name: str, folder: Path, **args: Any) -> Path:
    """A model of timm with random weights, none of them at its initial value, as timm saves it."""
    torch.manual_seed(1)
    model = timm.create_model(name, **{**TINY, **args})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images in three classes that are hard to tell apart."""
    return sharded(
        tmp_path_factory.mktemp("noise"),
        60,
        classes=("a", "b", "c"),
        size=lambda number: (40 + number, 40),
        smooth=True,
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("vit_tiny_patch16_224", tmp_path_factory.mktemp("plain") / "vit", num_classes=7)


def starting(data: Path, out: Path, init: object, model: str, **fields: Any) -> PretrainConfig:
    given = {"method": "mae", "steps": 1, "image_size": 32, "patch_size": 8, **fields}
    return dataclasses.replace(small(data, out), model=model, init=init, **given)


def features_by_timm(folder: Path, data: Path) -> tuple[Tensor, Tensor]:
    """Pooled features and labels of the model itself, on the pixels that it was made for."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(-1, 1, 1) for name in ("mean", "std"))
    ours, deviation = (torch.tensor(each).view(-1, 1, 1) for each in (MEAN, STD))
    rows, labels = [], []
    with Stream(read_manifest(data), batch_size=16, image_size=32, views=1, unit_size=8, training=False) as stream:
        for batch in stream:
            with torch.no_grad():
                tokens = model.forward_features((batch.images * deviation + ours - mean) / std)
                rows.append(model.fc_norm(tokens[:, model.num_prefix_tokens :].mean(dim=1)))
            assert batch.labels is not None
            labels.append(batch.labels)
    return torch.cat(rows), torch.cat(labels)


@pytest.mark.parametrize("kind", VITS)
def test_the_score_before_the_first_step_is_that_of_the_model_itself(kind: str, noise: Path, tmp_path: Path) -> None:
    name, args = VITS[kind]
    folder = saved(name, tmp_path / "vit", **args)
    config = starting(noise, tmp_path / "run", f"local-dir:{folder}", name, evaluate_every=1)
    pretrain(config)
    x, labels = features_by_timm(folder, noise)
    test = held_out_fifth(len(x))
    expected = knn_accuracy(x[~test], labels[~test], x[test], labels[test])
    first = lines(tmp_path / "run")[0]
    assert first["step"] == 0
    assert first["knn"] == round(expected, 3)
    assert first.keys() == {"step", "knn", "rankme"}

    model = Pretraining(dataclasses.replace(config, out=tmp_path / "other"), read_manifest(noise)).model.eval()
    with Stream(read_manifest(noise), batch_size=16, training=False, **model.stream_options()) as stream:
        images = next(iter(stream)).images
    with torch.no_grad():
        pooled = pool(model.backbone, images)
        torch.testing.assert_close(pooled, x[:16], atol=1e-4, rtol=1e-4)
        # All units in one view are the whole image: what is trained is what is scored.
        encoder = model.encoder
        tokens = encoder.encode_patches(encoder.unit_patches(images), encoder.unit_grid(32, 32))[-1]
        whole = model.backbone.forward_features(images)[:, model.backbone.num_prefix_tokens :]  # type: ignore[operator,misc]
        torch.testing.assert_close(tokens, model.backbone.fc_norm(whole), atol=1e-4, rtol=1e-4)  # type: ignore[operator]
    args_kept = read_config(tmp_path / "run")["resolved"]["backbone_args"]
    assert args_kept["class_token"] == (model.backbone.cls_token is not None)


def test_what_was_taken_resized_and_left_is_told(
    noise: Path, plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = starting(noise, tmp_path / "run", plain, "vit_tiny_patch16_224", image_size=64, patch_size=16)
    with caplog.at_level(logging.INFO, "coma"):
        pretrain(config)
    told = [record.getMessage() for record in caplog.records]
    assert max(map(len, told[:8])) < 80 + len(str(plain))
    for text in (
        "vit_tiny_patch16_224 of timm",
        "taken    42 of the backbone's 42 tensors, 100% of its parameters",
        "among them class token, positions",
        "resized  patch embedding, 8 to 16 pixels",
        "pixels   normalised by other means (0.5, 0.5, 0.5)",
        "left     classifier",
        "new      decoder",
    ):
        assert any(text in line for line in told), (text, told)
    start = read_config(tmp_path / "run")["resolved"]["init"]
    assert start["source"] == str(plain)
    assert start["left"] == ["classifier"]
    # Positions of a 4 x 4 grid are those of a 4 x 4 grid; on another they are resampled.
    config = starting(noise, tmp_path / "larger", plain, "vit_tiny_patch16_224", image_size=64)
    pretrain(config)
    assert "positions, 4x4 to 8x8" in read_config(tmp_path / "larger")["resolved"]["init"]["resized"]
    assert weights_of(tmp_path / "larger")["backbone.pos_embed"].shape == (1, 65, 96)


@pytest.mark.parametrize("method", ["coma", "mae"])
def test_a_run_from_public_weights_is_scored_drawn_exported_and_goes_on(
    noise: Path, plain: Path, tmp_path: Path, method: str
) -> None:
    config = starting(
        noise, tmp_path / "run", plain, "vit_tiny_patch16_224", method=method, steps=2, image_size=64, start_size=32
    )
    pretrain(config)
    trained = weights_of(tmp_path / "run")
    assert trained["backbone.cls_token"].abs().sum() > 0
    knn = score_run(tmp_path / "run", probe=False)["knn"]
    export_run(tmp_path / "run", tmp_path / "out", with_decoder=True)
    assert score_run(tmp_path / "out", noise, probe=False)["knn"] == knn
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    ours = load_autoencoder(tmp_path / "run").backbone
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), pool(ours, images), atol=1e-5, rtol=0)
        assert model(torch.randn(1, 3, 32, 48)).shape == (1, 96)
    for source in (tmp_path / "run", tmp_path / "out"):
        again = dataclasses.replace(config, init=source, out=tmp_path / "next")
        network = Pretraining(again, read_manifest(noise)).model
        for name, value in network.state_dict().items():
            assert torch.equal(value, trained[name]), name


def test_a_class_token_is_seen_by_each_view_and_learns(noise: Path, plain: Path, tmp_path: Path) -> None:
    config = starting(noise, tmp_path / "run", plain, "vit_tiny_patch16_224", method="coma")
    model = Pretraining(config, read_manifest(noise)).model
    units = torch.randperm(model.units).repeat(2, 1)
    images = torch.randn(2, 3, 32, 32)
    model(images, units).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert {"backbone.pos_embed", "backbone.cls_token"} <= model.no_weight_decay()
    # A view sees nothing of what the other sees, nor through the class token.
    encoder, grid = model.encoder, model.encoder.unit_grid(32, 32)
    patches = encoder.unit_patches(images).requires_grad_()
    encoder.encode_patches(patches, grid, units, (1, 3))[-1][:, : encoder.stage_tokens[0]].sum().backward()
    assert patches.grad is not None
    assert patches.grad[:, 0].abs().sum() > 0
    assert patches.grad[:, 1:].abs().sum() == 0


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_partitioned_weights_learn_the_same(noise: Path, plain: Path, tmp_path: Path, devices: int) -> None:
    """Class token, registers and positions are parameters of the whole ViT, whose own forward pass is not called."""
    stage3 = {"stage": 3, "stage3_param_persistence_threshold": 0}
    content = {"zero_optimization": stage3, "gradient_clipping": 1.0}
    (tmp_path / "z3.json").write_text(json.dumps(content))
    config = starting(noise, tmp_path / "one", plain, "vit_tiny_patch16_224", steps=2)
    pretrain(config)
    pretrain(dataclasses.replace(config, out=tmp_path / "two", devices=devices, ds_config=str(tmp_path / "z3.json")))
    two = weights_of(tmp_path / "two")
    for name, value in weights_of(tmp_path / "one").items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-3)


def test_a_run_is_resumed_without_its_source(noise: Path, plain: Path, tmp_path: Path) -> None:
    source = tmp_path / "vit"
    shutil.copytree(plain, source)
    config = starting(noise, tmp_path / "run", source, "vit_tiny_patch16_224", steps=3, evaluate_every=1)
    pretrain(dataclasses.replace(config, out=tmp_path / "whole"))
    pretrain(dataclasses.replace(config, stop_after=1))
    before = read_config(tmp_path / "run")["resolved"]["init"]
    shutil.rmtree(source)
    assert pretrain(config)["finished"]
    assert read_config(tmp_path / "run")["resolved"]["init"] == before
    whole, run = weights_of(tmp_path / "whole"), weights_of(tmp_path / "run")
    assert all(torch.equal(value, whole[name]) for name, value in run.items())
    assert [line["step"] for line in lines(tmp_path / "run") if "rankme" in line] == [0, 3]
    with pytest.raises(DataError, match="no run at"):  # another run needs it
        pretrain(dataclasses.replace(config, out=tmp_path / "new"))


def test_fine_tuning_takes_it_too_and_is_resumed_without_it(noise: Path, plain: Path, tmp_path: Path) -> None:
    source = tmp_path / "vit"
    shutil.copytree(plain, source)
    config = FinetuneConfig(
        source=f"local-dir:{source}", data=noise, out=tmp_path / "run", steps=2, batch_size=6, workers=1
    )
    model = Finetuning(config, read_manifest(noise)).model.eval()
    x, _ = features_by_timm(source, noise)
    with (
        Stream(read_manifest(noise), batch_size=16, image_size=32, views=1, unit_size=8, training=False) as stream,
        torch.no_grad(),
    ):
        torch.testing.assert_close(pool(model.backbone, next(iter(stream)).images), x[:16], atol=1e-4, rtol=1e-4)
    finetune(dataclasses.replace(config, stop_after=1))
    shutil.rmtree(source)
    assert finetune(config)["finished"]
    export_run(tmp_path / "run", tmp_path / "out")
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)(torch.zeros(1, 3, 32, 32)).shape == (
        1,
        3,
    )


def test_what_cannot_be_taken_is_one_line(noise: Path, plain: Path, tmp_path: Path) -> None:
    eva = saved("vit_small_patch16_dinov3", tmp_path / "eva", num_classes=0)
    wide = tmp_path / "wide"
    timm.models.save_for_hf(
        timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1), wide, safe_serialization=True
    )
    other = saved("vit_base_patch16_clip_quickgelu_224", tmp_path / "other", num_classes=0)
    bare = tmp_path / "bare"
    shutil.copytree(plain, bare)
    (bare / "model.safetensors").rename(bare / "pytorch_model.bin")
    damaged = tmp_path / "damaged"
    shutil.copytree(plain, damaged)
    (damaged / "config.json").write_text('{"architecture": "vit_nothing", "pretrained_cfg": {}}')
    cases: tuple[tuple[object, str, type[ComaError], str], ...] = (
        (plain, "dyvit_nano", UsageError, "give --model vit_tiny_patch16_224, and --method mae or coma"),
        (wide, "vit_small_patch16_224", UsageError, r"0% .*cls_token \[1, 1, 192\] for \[1, 1, 384\]"),
        (
            other,
            "vit_tiny_patch16_224",
            UsageError,
            "compute something else .*give --model vit_base_patch16_clip_quick",
        ),
        (eva, "vit_small_patch16_dinov3", UsageError, "timm's Eva with rotary positions"),
        (f"local-dir:{bare}", "vit_tiny_patch16_224", DataError, "safe_serialization"),
        (damaged, "vit_tiny_patch16_224", DataError, "no model that timm can load"),
        ("local-dir:nothing", "vit_tiny_patch16_224", DataError, "no run at nothing"),
        ("vit_tinny_patch16_224", "vit_tiny_patch16_224", DataError, "did you mean 'vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224.nothing", "vit_tiny_patch16_224", UsageError, "name one of vit_tiny_patch16_224.aug"),
        (plain, "vit_tiny_patch", UsageError, "did you mean"),
    )
    for init, model, kind, named in cases:
        with pytest.raises(kind, match=named) as caught:
            pretrain(starting(noise, tmp_path / "run", init, model))
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="give --patch-size 8, or --patch-size 16 to have"):
        pretrain(starting(noise, tmp_path / "run", plain, "vit_tiny_patch16_224", patch_size=None))
    assert not (tmp_path / "run").exists()


def test_weights_that_cannot_be_downloaded_are_one_line(
    noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("vit_tiny_patch16_224", "hf-hub:someone/vit"):
        with pytest.raises(ComaError, match=r"could not be downloaded.*check the network.*local-dir:FOLDER") as caught:
            pretrain(starting(noise, tmp_path / "run", name, "vit_tiny_patch16_224"))
        assert caught.value.exit_code == 1
        assert "\n" not in str(caught.value)
