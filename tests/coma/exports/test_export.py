"""What `coma export` writes is an ordinary timm model: it loads anywhere, at any size, and gives the run's features."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file
from untrained_runs import load, write_run

from coma.errors import ComaError, DataError, UsageError
from coma.exports.export import export_run
from coma.exports.folder import read_export
from coma.runs.read import load_autoencoder

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", steps=(3, 7))


@pytest.fixture(scope="module")
def export(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "new" / "nano"
    export_run(run, folder)
    return folder


def test_features_are_the_trainers(run: Path, export: Path) -> None:
    assert sorted(path.name for path in export.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert len({path.stat().st_mode for path in export.iterdir()}) == 1  # whoever may read one may read all
    images = torch.randn(2, 3, 64, 64)
    trained = load_autoencoder(run)
    expected = trained.encoder.encode_patches(trained.encoder.unit_patches(images), (4, 4))
    with torch.no_grad():
        torch.testing.assert_close(load(export)(images), expected[-1].mean(1), atol=1e-5, rtol=0)
        maps = load(export, features_only=True)(images)
        whole = load(export).forward_intermediates(images, intermediates_only=True)
    for ours, theirs in zip(maps, whole, strict=True):
        assert torch.equal(ours, theirs)


def test_any_size_without_retraining(export: Path) -> None:
    model = load(export, features_only=True)
    assert model.feature_info.reduction() == [2, 4, 8, 16]
    for height, width in ((16, 16), (96, 128), (208, 336)):
        with torch.no_grad():
            shapes = [tuple(x.shape[2:]) for x in model(torch.randn(1, 3, height, width))]
        assert shapes == [(height // stride, width // stride) for stride in (2, 4, 8, 16)]
    with pytest.raises(UsageError, match="100x64 is not a multiple of the 16-pixel"):
        model(torch.zeros(1, 3, 100, 64))


def test_detection_and_segmentation_sizes_with_patches_of_four(tmp_path: Path) -> None:
    export_run(write_run(tmp_path / "run", patch_size=None, image_size=224), tmp_path / "out")
    model = load(tmp_path / "out", features_only=True)
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    for height, width in ((384, 512), (800, 1344)):
        with torch.no_grad():
            shapes = [tuple(x.shape[2:]) for x in model(torch.randn(1, 3, height, width))]
        assert shapes == [(height // stride, width // stride) for stride in (4, 8, 16, 32)]


def test_config_is_what_timm_writes(export: Path, tmp_path: Path) -> None:
    """As `timm.models.push_to_hf_hub` would write of the model that was loaded."""
    model = load(export)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (export, tmp_path))
    assert ours.pop("coma")["step"] == 7
    ours["pretrained_cfg"] = {k: v for k, v in ours["pretrained_cfg"].items() if v is not None}
    theirs["pretrained_cfg"] = {k: v for k, v in theirs["pretrained_cfg"].items() if v is not None}
    assert ours.pop("model_args").items() <= (theirs.pop("model_args") | {"img_size": 64}).items()
    assert ours == theirs
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(images), model(images))
    data = timm.data.resolve_model_data_config(model)
    assert (data["input_size"], data["interpolation"], data["crop_pct"]) == ((3, 64, 64), "bilinear", 0.875)


def test_a_classifier_and_grey_images(export: Path) -> None:
    assert load(export, num_classes=10)(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    grey = torch.randn(1, 1, 64, 64)
    torch.testing.assert_close(load(export, in_chans=1)(grey), load(export)(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(("method", "model"), [("mae", "vit_tiny_patch16_224"), ("coma", "vit_tiny_patch16_224")])
def test_a_plain_vit_is_timms_own(method: str, model: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", model=model, method=method, image_size=64, patch_size=8)
    export_run(run, tmp_path / "out")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = load_autoencoder(run).backbone(images)
        vit = load(tmp_path / "out")
        torch.testing.assert_close(vit(images), expected, atol=1e-5, rtol=0)
        assert vit(torch.randn(1, 3, 96, 128)).shape == expected[:1].shape
        maps = load(tmp_path / "out", features_only=True)(torch.randn(1, 3, 96, 128))
    assert {tuple(x.shape) for x in maps} == {(1, 192, 12, 16)}


BARE = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None  # an import of it fails
import coma, timm, torch
assert timm.__file__.startswith({timm_folder!r})
model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
images = torch.load({images!r})
with torch.no_grad():
    torch.save([model(images), *model.forward_intermediates(images, intermediates_only=True)], {out!r})
"""


def load_bare(export: Path, tmp_path: Path, timm_folder: Path | None = None) -> None:
    """Load it in a process that has little else, and compare."""
    blocked = [
        "deepspeed",
        "nvidia.dali",
        "pyarrow",
        "rich",
        "scipy",
        "tensorboard",
        "typer",
        "upath",
    ]
    blocked += ["webdataset", "xxhash", "ray", "transformers", "pandas"]
    images = torch.randn(1, 3, 64, 64)
    torch.save(images, tmp_path / "images.pt")
    code = BARE.format(
        blocked=blocked,
        folder=export,
        images=str(tmp_path / "images.pt"),
        out=str(tmp_path / "out.pt"),
        timm_folder=str(timm_folder or ""),
    )
    environment = {**os.environ, "PYTHONPATH": str(timm_folder or "")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment, timeout=120)
    model = load(export)
    expected = [model(images), *model.forward_intermediates(images, intermediates_only=True)]
    for ours, theirs in zip(torch.load(tmp_path / "out.pt"), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_loading_needs_torch_timm_and_safetensors_only(export: Path, tmp_path: Path) -> None:
    load_bare(export, tmp_path)


@pytest.mark.slow
def test_the_oldest_timm_that_is_allowed_loads_it(export: Path, tmp_path: Path) -> None:
    oldest = re.search(r'"timm>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    uv = os.environ.get("UV") or shutil.which("uv")
    assert oldest
    if uv is None:
        pytest.skip("uv, which fetches timm, is not here")
    command = [uv, "pip", "install", "--no-deps", "--target", tmp_path / "old", f"timm=={oldest[1]}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"timm {oldest[1]} can't be had: {done.stderr.strip().splitlines()[-1:]}")
    load_bare(export, tmp_path, tmp_path / "old")


@pytest.mark.slow
def test_exporting_needs_no_deepspeed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; sys.modules['deepspeed'] = None; sys.argv[0] = 'coma'; from coma.cli.main import main; main()"
    command = [sys.executable, "-c", code, "export", str(run), "made", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, timeout=120)
    result = json.loads(done.stdout)
    assert (result["export"], result["model"], result["step"]) == ("made", "dyvit_nano", 7)
    assert (result["features"], result["decoder"], result["onnx"]) == (256, False, None)
    monkeypatch.chdir(tmp_path)
    assert eval(result["load"], {"timm": timm}).num_classes == 0


def test_an_older_checkpoint_by_its_folder(run: Path, tmp_path: Path) -> None:
    older = run / "checkpoints" / "step-000003"
    assert export_run(older, tmp_path / "out")["step"] == 3
    saved = load_file(older / "weights.safetensors")
    for name, value in load_file(tmp_path / "out" / "model.safetensors").items():
        assert torch.equal(value, saved[f"backbone.{name}"])


# -- the card ----------------------------------------------------------------------------------


def front_matter(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def test_the_card_says_what_the_weights_are(export: Path) -> None:
    card = (export / "README.md").read_text()
    head = front_matter(card)
    assert (head["library_name"], head["license"]) == ("timm", "unknown")
    for said in (
        "| data | photos-shards, 100 images |",
        "| images seen | 70, 0.7 epochs |",
        "| time | 0.07 hours of training on 2 x NVIDIA H100 |",
        "| 20 nearest neighbours, top-1 % | 61.25 | 7 | its own |",
        "| last loss | 0.1429 |",
        f"torch {torch.__version__}",
    ):
        assert said in card
    assert "private" not in card
    assert "| 99 |" not in card


def test_what_the_card_says_of_loading_runs(export: Path) -> None:
    (code,) = (export / "README.md").read_text().split("```python\n")[1:]
    names: dict[str, Any] = {}
    exec(code.split("```")[0].replace("PATH", str(export)), names)
    assert names["features"].shape == (1, 256)
    assert names["classifier"].num_classes == 10


def test_odd_names_break_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    content = json.loads((run / "config.json").read_text())
    content["resolved"]["data"] = "/a/---\nlicense: mit\n| <b>`x`|[y](z) \u202e&amp;"
    content["resolved"]["device_name"] = "a | b\n# c"
    content["versions"]["torch"] = "2\n---\n"
    (run / "config.json").write_text(json.dumps(content))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('\n[1]\n"x"\n{"step": 7, "knn": true, "probe": "much"}\n')
        file.write(json.dumps({"step": 7, "probe": 50.0, "data": "s3://me:secret@bucket/a|b\n?key=1"}) + "\n")
    export_run(run, tmp_path / "out", license="cc-by-4.0")
    card = (tmp_path / "out" / "README.md").read_text()
    assert front_matter(card)["license"] == "cc-by-4.0"
    assert "secret" not in card
    for line in card.splitlines():
        if line.startswith("|"):
            cells = line.replace("\\|", "").strip("|").split("|")
            assert len(cells) in (2, 4), line
    assert [line for line in card.splitlines() if line.startswith("#")] == [
        "# dyvit_nano, pre-trained on images without labels",
        "## Loading it",
        "## How it was trained",
        "## What its frozen features are worth",
    ]
    assert "<b>" not in card.split("---\n", 2)[2]
    (result, *_) = front_matter(card)["model-index"][0]["results"]
    assert result["dataset"]["name"].startswith("--- license: mit | <b>")
    with pytest.raises(UsageError, match="--license"):
        export_run(run, tmp_path / "other", license="mit\n---")


# -- where it goes -----------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_an_export_is_replaced(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export_run(run / "checkpoints" / "step-000003", out, with_decoder=True)
    assert (out / "decoder.safetensors").exists()
    export_run(run, out)
    assert not (out / "decoder.safetensors").exists()
    assert json.loads((out / "config.json").read_text())["coma"]["step"] == 7
    linked = tmp_path / "link"
    linked.symlink_to(out)
    export_run(run, linked)
    assert linked.is_symlink()

    (out / "notes.txt").write_text("mine")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"architecture": "resnet18"}')
    file = tmp_path / "file"
    file.touch()
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    before = contents(tmp_path)
    for folder, named in (
        (out, "notes.txt"),
        (foreign, "not written by"),
        (run, "checkpoints"),
        (file, "is a file"),
        (Path("s3://bucket/out"), "is a URL"),
        (Path(), "the folder you are in"),
    ):
        with pytest.raises(UsageError, match=named) as caught:
            export_run(run, folder)
        assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_whole_or_not_at_all(run: Path, tmp_path: Path) -> None:
    import resource

    out = tmp_path / "out"
    export_run(run / "checkpoints" / "step-000003", out)
    before = contents(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        for folder in (out, tmp_path / "new"):
            with pytest.raises(ComaError, match=r"could not be written: .*too large") as caught:
                export_run(run, folder)
            assert "\n" not in str(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_wrong_inputs_are_one_line_each(run: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    path = damaged / "checkpoints" / "step-000007" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    empty = tmp_path / "empty"
    empty.mkdir()
    for wrong, named in (
        (tmp_path / "absent", "no such folder"),
        (empty, "config.json"),
        (damaged, "bytes have changed"),
        (run / "metrics.jsonl", "a file"),
    ):
        with pytest.raises(DataError, match=named) as caught:
            export_run(wrong, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    for folder, named in (
        (tmp_path / "absent", "no such folder"),
        (empty, "not written by"),
        (run, "not written"),
    ):
        with pytest.raises(DataError, match=named):
            read_export(folder)
