"""`coma demo` on a tiny scale, then `probe`, `knn`, `reconstruct` and `report` on the run it leaves."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from drawn import shard_images
from masked import draw_pairs
from PIL import Image
from typer.testing import CliRunner

import coma.demo.demo as demo_module
from coma.cli.demo import demo
from coma.cli.knn import knn
from coma.cli.probe import probe
from coma.cli.reconstruct import reconstruct
from coma.cli.report import report
from coma.errors import ComaError

app = typer.Typer()
for command in (demo, knn, probe, reconstruct, report):
    app.command()(command)

SMALL = {
    "TRAIN_SCENES": 60,
    "VAL_SCENES": 20,
    "STEPS": 3,
    "BATCH_SIZE": 4,
    "IMAGE_SIZE": 32,
    "PATCH_SIZE": 2,
    "BASE_LR": 0.01,
}


def coma(*arguments: object) -> str:
    """Run a command as typed and return its stdout."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def _values(stdout: str) -> dict[str, str]:
    return dict(line.split("  ", 1) for line in stdout.splitlines())


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `coma demo --json` prints."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(demo_module, name, value)
        return json.loads(coma("demo", "--json", "--seed", 2, "--out", tmp_path_factory.mktemp("demo") / "out"))


def test_the_demos_result(shown):
    for name in ("probe_before", "probe_after", "knn_before", "knn_after"):
        assert 0 <= shown[name] <= 100
    for name in ("run", "picture", "report", "data"):
        assert Path(shown[name]).exists()
    assert shown["elapsed_s"] > shown["training_s"] > 0
    assert (shown["train_images"], shown["val_images"], shown["classes"], shown["steps"]) == (60, 20, 10, 3)
    metrics = [json.loads(line) for line in Path(shown["run"], "metrics.jsonl").read_text().splitlines()]
    scores = [line for line in metrics if "probe" in line]
    assert [line["step"] for line in scores] == [0, 3]
    assert scores[0]["probe"] == pytest.approx(shown["probe_before"], abs=1e-3)
    assert scores[1]["knn"] == pytest.approx(shown["knn_after"], abs=1e-3)


def test_what_the_pages_name_of_the_demo_is_there(shown):
    pages = Path(__file__).parents[2]
    text = "".join(page.read_text() for page in [pages / "README.md", *(pages / "docs").glob("*.md")])
    named = set(re.findall(r"`coma-demo/([\w./-]+)`", text))
    assert "run/report.html" in named
    assert [name for name in named if not Path(shown["out"], name).exists()] == []


def test_the_demos_before_is_the_network_that_training_began_with(shown):
    """The picture of step 0 and the probe before training show one and the same network."""
    import torch

    from coma.evaluation.score import labelled_manifests, score
    from coma.runs.read import build_model, read_config

    torch.manual_seed(2)
    model = build_model(read_config(Path(shown["run"]))["config"])
    assert score(model, *labelled_manifests(Path(shown["data"]))).probe == shown["probe_before"]


def test_the_demo_ends_with_ten_lines(shown):
    from coma.cli.demo import _as_lines
    from coma.demo.demo import DemoResult

    paths = ("out", "data", "run", "picture", "report")
    values = {name: Path(value) if name in paths else value for name, value in shown.items()}
    values.update(data=Path("coma-demo/shards"), picture=Path("coma-demo/p.png"), report=Path("coma-demo/r.html"))
    for change in (
        {},
        {"probe_before": None, "probe_after": None, "knn_before": None, "drawn": False, "classes": 0},
    ):
        told = _as_lines(DemoResult(**{**values, **change}))
        assert len(told) == 10
        width = max(len(name) for name in told)
        assert all(width + 2 + len(text) <= 80 for text in told.values()), told


def test_probe_and_knn_add_to_the_metrics(shown):
    metrics = Path(shown["run"], "metrics.jsonl")
    before = metrics.read_text()
    result = json.loads(coma("probe", shown["run"], "--json"))
    assert result["probe"] == pytest.approx(shown["probe_after"], abs=1e-3)
    assert (result["step"], result["tested_on"], result["test_images"]) == (3, "val", 20)
    low, high = result["probe_interval"]
    assert low <= result["probe"] <= high
    assert low < high
    assert result["probe"] <= result["probe_top5"] <= 100
    lines = _values(coma("knn", shown["run"], shown["data"], "--batch-size", 16))
    assert lines["20-NN"].strip().startswith(f"{shown['knn_after']:.1f}% top-1 (")
    assert list(lines)[-2:] == ["command", "next"]
    added = [json.loads(line) for line in metrics.read_text().removeprefix(before).splitlines()]
    assert [sorted(line) for line in added] == [["probe", "rankme", "step"], ["knn", "rankme", "step"]]


def test_the_command_of_a_result_reproduces_it(shown, tmp_path):
    data = tmp_path / "a folder"
    data.symlink_to(Path(shown["data"]).resolve())
    first = json.loads(coma("knn", shown["run"], data, "--json", "--batch-size", 7))
    words = shlex.split(first["command"])
    assert words[:2] == ["coma", "knn"]
    assert "'" in first["command"]
    assert json.loads(coma(*words[1:], "--json")) == first


def test_reconstruct_paints_the_runs_data_files_folders_and_shards(shown, tmp_path):
    run = shown["run"]
    default = Path(_values(coma("reconstruct", run, "--count", 2))["picture"].strip())
    assert default == Path(run, "reconstruction.png")
    with Image.open(default) as picture:
        two_rows = picture.size
    images = Path(shown["out"], "images", "val")
    files = sorted(images.glob("*/*.jpg"))[:2]
    for name, sources in {"files": files, "folder": [images], "shards": [shown["data"]]}.items():
        out = tmp_path / "new" / f"{name}.png"
        assert json.loads(coma("reconstruct", run, *sources, "--out", out, "--count", 2, "--json")) == {
            "picture": str(out)
        }
        with Image.open(out) as picture:
            assert picture.size == two_rows
    coma("reconstruct", run, files[0], "--out", tmp_path / "a.png")
    coma("reconstruct", run, files[0], "--out", tmp_path / "b.png")
    coma("reconstruct", run, files[0], "--out", tmp_path / "c.png", "--seed", 1)
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_report_holds_the_scores_and_pictures(shown):
    path = Path(_values(coma("report", shown["run"]))["report"].strip())
    page = path.read_text()
    assert page.count("data:image/jpeg;base64,") >= 2
    assert f"{shown['probe_before']:.1f}% at step 0" in page


def test_mistakes_are_one_line(shown, tmp_path):
    for arguments in (
        ("probe", tmp_path),
        ("knn", tmp_path / "nowhere"),
        ("report", tmp_path),
        ("reconstruct", shown["run"], tmp_path / "nowhere.jpg"),
        ("reconstruct", shown["run"], "--out", tmp_path),
        ("demo", "--out", shown["out"]),
        ("demo", "--images", tmp_path / "nowhere", "--out", tmp_path / "out"),
    ):
        with pytest.raises(ComaError) as caught:
            coma(*arguments)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["demo", "knn", "probe", "reconstruct", "report"])
def test_help_fits_80_columns(name):
    shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).stdout
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "…" not in shown


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images with masks, without a split val."""
    folder = tmp_path_factory.mktemp("masked")
    draw_pairs(folder / "drawn", 20)
    (folder / "drawn" / "classes.txt").write_text(
        "sky\ntree\n" + "a name that is far too long for a line of a table\nroad\n"
    )
    return shard_images(folder / "drawn", folder / "shards")


def test_segmentation_prints_a_table_of_classes_within_80_columns(shown, masked):
    lines = coma("probe", shown["run"], masked, "--task", "segmentation", "--patches", 200).splitlines()
    assert lines[0].split() == ["class", "pixels", "logistic", "regression", "neighbours"]
    assert sorted(line.split()[0] for line in lines[1:5]) == ["a", "road", "sky", "tree"]
    values = _values("\n".join(lines[5:]))
    assert "% mIoU (" in values["logistic regression"]
    assert values["windows"].strip() == "32 x 32 px, one an image"
    assert values["tested on"].strip() == "4 images (a fifth of train, held out)"
    assert all(len(line) <= 80 for line in lines[:9])


def test_the_command_of_a_segmentation_reproduces_it(shown, masked):
    options = ("--task", "segmentation", "--shorter-side", 40, "--patches", 300, "--json")
    first = json.loads(coma("knn", shown["run"], masked, *options))
    assert {"miou_knn", "miou_knn_interval", "class_iou", "stride"} <= set(first)
    assert first["shorter_side"] == 40
    assert json.loads(coma(*shlex.split(first["command"])[1:], "--json")) == first


def test_options_of_the_other_task_are_refused(shown, masked):
    with pytest.raises(ComaError, match="--devices is for --task classification"):
        coma("knn", shown["run"], masked, "--task", "segmentation", "--devices", 2)
    with pytest.raises(ComaError, match="--stride is for windows of images with masks"):
        coma("knn", shown["run"], "--stride", 4)
