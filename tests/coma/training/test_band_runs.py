"""Runs on samples of other than 8-bit RGB, from pre-training to exports: 13 bands, 16-bit grey, float32."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from bands import KINDS, band_set, read_sample
from drawn import sharded
from numpy.typing import NDArray
from PIL import Image
from small_runs import course, lines, same_weights, weights_of
from torch import Tensor

from coma.embedding.embed import embed
from coma.embedding.images import open_images
from coma.embedding.options import EmbedOptions
from coma.errors import UsageError
from coma.evaluation.score_run import score_run
from coma.exports.card import preparing
from coma.exports.export import export_run
from coma.pictures.reconstruct import reconstruct_run
from coma.pictures.step import read_step
from coma.pictures.step_sheet import step_sheet
from coma.pipeline.crops import center_crops
from coma.pipeline.preprocessing import EVAL_FRACTION, Preprocessing
from coma.shards.manifest import read_manifest
from coma.training import FinetuneConfig, PretrainConfig, finetune, pretrain

SIDE = 32


def config(data: Path, out: Path, **fields: Any) -> PretrainConfig:
    given = {"steps": 30, "batch_size": 8, "workers": 1, "base_lr": 6e-3, "save_every": 1000, **fields}
    return PretrainConfig(data=data, out=out, **{"model": "dyvit_nano", "image_size": SIDE, "patch_size": 2, **given})


@pytest.fixture(scope="module")
def bands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Multi-band TIFFs."""
    return band_set(tmp_path_factory.mktemp("bands"), "tiff", 24, val_fraction=0.25)


@pytest.fixture(scope="module")
def run(bands: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 steps on them, never interrupted."""
    out = tmp_path_factory.mktemp("run") / "run"
    pretrain(config(bands, out, show_channels="4,3,2", clip_percentile=0.5))
    return out


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "export"
    export_run(run, out)
    return out


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in lines(run) if "loss" in line]


DOC = Path(__file__).parents[3] / "docs" / "use.md"


def pixels_of(export: Path, array: NDArray[Any]) -> Tensor:
    """The pixels of an export's network, as docs/use.md makes them, of the centre of an array."""
    (code,) = (each for each in re.findall(r"```python\n(.*?)```", DOC.read_text(), re.S) if "def prepare(" in each)
    names: dict[str, Any] = {}
    exec(code.replace("exports/scenes", str(export)), names)
    crop = center_crops(np.array([array.shape[1]]), np.array([array.shape[0]]), image_size=SIDE, fraction=EVAL_FRACTION)
    (top, left), (height, width) = crop.start[0], crop.shape[0]
    image: Tensor = names["prepare"](array[top : top + height, left : left + width])
    return image


def test_the_loss_falls_and_the_run_says_what_its_images_are(run: Path) -> None:
    assert np.mean(losses(run)[-5:]) < 0.98 * np.mean(losses(run)[:3])
    pixels = json.loads((run / "config.json").read_text())["resolved"]["pixels"]
    assert (pixels["channels"], pixels["dtype"], len(pixels["mean"]), len(pixels["low"])) == (13, "uint16", 13, 13)


def test_a_stopped_run_ends_as_one_that_was_not(bands: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pretrain(config(bands, out, clip_percentile=0.5, stop_after=7))
    pretrain(config(bands, out, clip_percentile=0.5))
    assert course(out) == course(run)
    assert same_weights(out, run)


def test_other_images_are_another_run(bands: Path, run: Path, tmp_path: Path) -> None:
    rgb = sharded(tmp_path / "rgb", 16, classes=("a", "b"))
    with pytest.raises(
        UsageError, match="the kind of images was '13 channels of uint16' there and is '3 channels of uint8' now"
    ):
        pretrain(config(rgb, run))
    with pytest.raises(UsageError, match=r"--clip-percentile was 0\.5 there and is None now"):
        pretrain(config(bands, run))
    with pytest.raises(UsageError, match=r"13 channels of uint16, clipped, and those of .* 3 channels of uint8"):
        score_run(run, rgb, probe=False, knn=False)


def test_timm_makes_of_an_export_what_embed_makes_of_it(bands: Path, run: Path, exported: Path, tmp_path: Path) -> None:
    content = json.loads((exported / "config.json").read_text())
    cfg, about = content["pretrained_cfg"], content["coma"]["pixels"]
    assert cfg["input_size"] == [13, SIDE, SIDE]
    assert (cfg["mean"], cfg["std"]) == (about["mean"], about["std"])
    model = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    assert model.in_chans == 13
    for name, value in weights_of(run).items():
        if name.startswith("backbone."):
            assert torch.equal(model.state_dict()[name.removeprefix("backbone.")], value)
    table = _embedded(exported, bands, tmp_path / "table.parquet")
    source = bands.parent / "images"
    for row in table[:3]:
        with torch.inference_mode():
            vector = model(pixels_of(exported, read_sample(source / row["path"])))[0]
        assert np.abs(vector.numpy() - row["vector"]).max() < 1e-4
    again = _embedded(run, bands, tmp_path / "again.parquet")
    assert [row["vector"] for row in again] == [row["vector"] for row in table]


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_lines_of_a_card_make_the_pixels_of_the_network(dtype: str, clipped: bool) -> None:
    low, high = ((0.2, 0.3), (0.6, 0.9)) if clipped else (None, None)
    like = Preprocessing((0.1, 0.4), (0.5, 2.0), dtype=dtype, low=low, high=high)
    names: dict[str, Any] = {"torch": torch, "model": SimpleNamespace(pretrained_cfg={"input_size": [2, 8, 8]})}
    names["model"].pretrained_cfg |= {"mean": like.mean, "std": like.std}
    exec(preparing(like.to_json()), names)
    array = np.random.default_rng(0).integers(0, 256, (8, 8, 2)).astype(dtype)
    values = array / like.unit if low is None or high is None else np.clip(array / like.unit, low, high)
    expected = (values - like.mean) / like.std
    np.testing.assert_allclose(names["prepare"](array)[0].permute(1, 2, 0), expected, rtol=1e-4, atol=1e-5)


def _embedded(model: Path, data: Path, out: Path) -> list[dict[str, Any]]:
    options = EmbedOptions(model=str(model), images=str(data), out=out, device="cpu")
    embed(options, open_images(options))
    rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    return rows


def test_pictures_are_in_false_colour(run: Path, tmp_path: Path) -> None:
    picture = reconstruct_run(run, out=tmp_path / "picture.png", count=2, show_channels="13,1,2")
    other = reconstruct_run(run, out=tmp_path / "other.png", count=2)
    assert np.any(np.asarray(Image.open(picture)) != np.asarray(Image.open(other)))
    assert (run / "previews" / "step-000030.png").is_file()
    sheet = step_sheet(read_step(run, 3), "4,3,2")
    assert len(set(sheet.resize((64, 64)).get_flattened_data())) > 500
    with pytest.raises(UsageError, match="there is no channel 14"):
        reconstruct_run(run, out=picture, show_channels="14,1,2")


def test_scores_and_fine_tuning_take_what_the_run_took(bands: Path, run: Path, tmp_path: Path) -> None:
    assert score_run(run)["knn"] >= 50
    tuned = tmp_path / "tuned"
    config = FinetuneConfig(source=run, data=bands, out=tuned, steps=2, batch_size=6, workers=1)
    finetune(config)
    content = json.loads((tuned / "config.json").read_text())["resolved"]
    assert content["pixels"] == json.loads((run / "config.json").read_text())["resolved"]["pixels"]
    export_run(tuned, tmp_path / "classifier")
    model = timm.create_model(f"local-dir:{tmp_path / 'classifier'}", pretrained=True)
    assert model(torch.zeros(1, 13, SIDE, SIDE)).shape == (1, 2)


def test_weights_for_rgb_start_a_run_of_other_channels(bands: Path, tmp_path: Path) -> None:
    rgb = tmp_path / "rgb"
    pretrain(config(sharded(tmp_path / "images", 16), rgb, steps=1))
    out = tmp_path / "run"
    pretrain(config(bands, out, steps=1, init=rgb, stop_after=1, resume="never"))
    start = json.loads((out / "config.json").read_text())["resolved"]["init"]
    assert start["resized"] == ["patch embedding, 3 to 13 channels, repeated and scaled, as timm does"]
    assert "decoder" in start["new"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "npy"])
@pytest.mark.parametrize("model", ["dyvit_nano", "vit_tiny_patch16_224"])
def test_16_bit_grey_and_float32_go_the_whole_way(kind: str, model: str, tmp_path: Path) -> None:
    data, out, other = band_set(tmp_path / "set", kind, 24), tmp_path / "run", tmp_path / "other"
    fields = {"model": model, "patch_size": 2 if model == "dyvit_nano" else 8}
    pretrain(config(data, out, **fields))
    assert np.mean(losses(out)[-5:]) < np.mean(losses(out)[:3])
    pretrain(config(data, other, stop_after=11, **fields))
    pretrain(config(data, other, **fields))
    assert same_weights(out, other)
    export_run(out, tmp_path / "export")
    content = json.loads((tmp_path / "export" / "config.json").read_text())
    network = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    pixels = read_manifest(data).pixels
    assert pixels is not None
    assert content["pretrained_cfg"]["input_size"][0] == KINDS[kind][0]
    assert content["pretrained_cfg"]["mean"] == list(pixels.mean)
    row = _embedded(tmp_path / "export", data, tmp_path / "table.parquet")[0]
    array = read_sample(tmp_path / "set" / "images" / row["path"])
    with torch.inference_mode():
        vector = network(pixels_of(tmp_path / "export", array))[0]
    assert np.abs(vector.numpy() - row["vector"]).max() < 1e-4


def test_rgb_takes_other_means_into_its_export(tmp_path: Path) -> None:
    data, out = sharded(tmp_path / "images", 12), tmp_path / "run"
    pretrain(config(data, out, steps=1, mean="0.5,0.5,0.5", std="0.25,0.25,0.25"))
    export_run(out, tmp_path / "export")
    cfg = json.loads((tmp_path / "export" / "config.json").read_text())["pretrained_cfg"]
    assert (cfg["mean"], cfg["std"]) == ([0.5] * 3, [0.25] * 3)
