"""Loading of a backbone by whatever names it: a run, an export, timm's own folders and names."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from untrained_runs import SIZES, write_run

from coma.errors import ComaError, DataError, DivergedError, UsageError
from coma.exports.backbone import load_backbone, preprocessing_of
from coma.exports.export import export_run
from coma.pipeline.preprocessing import DEFAULT, Preprocessing
from coma.runs.read import load_autoencoder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def saved_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT as timm saves it for the Hub, with a mean and a crop of its own."""
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=5)
    folder = tmp_path_factory.mktemp("models") / "vit"
    timm.models.save_for_hf(model, folder, model_args={"img_size": 64, "depth": 2}, safe_serialization=True)
    return folder


@torch.no_grad()
def test_a_run_its_checkpoint_and_its_export_are_one_backbone(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "export")
    images = torch.randn(2, 3, SIZES["image_size"], SIZES["image_size"])
    expected = load_autoencoder(run).backbone(images)
    named = [run, run / "checkpoints" / "step-000007", tmp_path / "export", f"local-dir:{tmp_path / 'export'}"]
    for name in named:
        backbone = load_backbone(name)
        assert torch.equal(backbone.module(images), expected)
        assert (backbone.name, backbone.step, backbone.image_size) == ("dyvit_nano", 7, 64)
        assert backbone.preprocessing == DEFAULT
        assert not backbone.module.training
    assert len({load_backbone(name).digest() for name in named}) == 1


@torch.no_grad()
def test_a_folder_that_timm_saved_is_loaded_with_its_preprocessing(saved_vit: Path) -> None:
    backbone = load_backbone(saved_vit)
    images = torch.randn(2, 3, 64, 64)
    expected = timm.create_model(f"local-dir:{saved_vit}", pretrained=True, num_classes=0).eval()
    assert torch.equal(backbone.module(images), expected(images))
    assert backbone.preprocessing == Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0.9, "bicubic")
    assert backbone.image_size == 64  # though timm's configuration says 224


def test_a_vit_of_another_size_than_its_usual_one_says_so(tmp_path: Path) -> None:
    backbone = load_backbone(write_run(tmp_path / "run", model="vit_tiny_patch16_224", patch_size=16))
    assert backbone.image_size == 64
    assert backbone.module(torch.randn(1, 3, 64, 64)).shape == (1, 192)


def test_another_image_size_resizes_what_depends_on_it(run: Path, saved_vit: Path) -> None:
    assert load_backbone(run, image_size=96).module(torch.randn(1, 3, 96, 96)).shape == (1, 256)
    assert load_backbone(saved_vit, image_size=96).module(torch.randn(1, 3, 96, 96)).shape == (1, 192)
    assert load_backbone("test_resnet", image_size=96, untrained=True).image_size == 96
    with pytest.raises(UsageError, match="65"):
        load_backbone(run, image_size=65)


def test_random_weights_are_taken_only_if_asked_for_and_are_always_the_same() -> None:
    with pytest.raises(UsageError, match=r"timm has no weights for 'dyvit_nano': .* --untrained"):
        load_backbone("dyvit_nano")
    first, second = (load_backbone("dyvit_nano", untrained=True) for _ in range(2))
    assert first.digest() == second.digest()
    assert first.preprocessing == DEFAULT


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "vit_tini_patch16_224",
            UsageError,
            "no run, export or timm model .* did you mean 'vit_tiny_patch16_224",
        ),
        ("owner/name", UsageError, "a model on the Hub is hf-hub:OWNER/NAME"),
        ("vit_small_patch14_dinov2.mine", UsageError, "it has vit_small_patch14_dinov2.lvd142m"),
        ("local-dir:/nowhere", DataError, "local-dir:/nowhere: no such folder"),
    ],
)
def test_a_model_that_is_not_there_is_an_error_of_one_line(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_backbone(name)


def test_weights_out_of_reach_are_an_error_and_not_random(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ComaError, match="vit_tiny_patch16_224 could not be downloaded"):
        load_backbone("vit_tiny_patch16_224")


def test_a_folder_with_other_weights_is_refused(saved_vit: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in saved_vit.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(saved_vit / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "norm" not in name}, broken / "model.safetensors")
    with pytest.raises(DataError, match="is no model that timm can load"):
        load_backbone(broken)
    weights["norm.weight"][0] = torch.nan
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(DivergedError, match="not finite"):
        load_backbone(broken)


def test_what_the_stream_cannot_do_is_said(caplog: pytest.LogCaptureFixture) -> None:
    told = {"mean": (0, 0, 0), "std": (1, 1, 1), "crop_pct": 1.0, "interpolation": "lanczos", "crop_mode": "border"}
    assert preprocessing_of(told, "m") == Preprocessing((0, 0, 0), (1, 1, 1), 1.0, "bicubic")
    assert "lanczos" in caplog.text
    assert "border" in caplog.text
    assert preprocessing_of({**told, "crop_mode": "squash"}, "m").squash
