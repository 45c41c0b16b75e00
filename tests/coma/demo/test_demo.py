"""The demo's own choices; `tests/cli/test_evaluation.py` runs it whole."""

import os
import signal
from pathlib import Path

import pytest
from drawn import draw_images
from PIL import Image

import coma.demo.demo as demo_module
from coma.demo.demo import demo, free_folder, new_folder
from coma.errors import ComaError, Preempted, UsageError


def test_the_next_free_name_is_taken_and_nothing_is_made(tmp_path):
    assert free_folder(tmp_path) == tmp_path / "coma-demo"
    (tmp_path / "coma-demo").mkdir()
    assert free_folder(tmp_path) == tmp_path / "coma-demo"  # empty
    (tmp_path / "coma-demo" / "anything").touch()
    (tmp_path / "coma-demo-2").write_text("a file of the user's")
    assert free_folder(tmp_path) == tmp_path / "coma-demo-3"
    assert not (tmp_path / "coma-demo-3").exists()


def test_a_folder_that_the_user_names_must_be_new_or_empty(tmp_path):
    assert new_folder(tmp_path) == tmp_path
    assert new_folder(tmp_path / "new" / "er") == tmp_path / "new" / "er"
    (tmp_path / "file").touch()
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(UsageError, match="new or empty"):
            demo(out=taken)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("images", ["nowhere", "file.txt", "empty"])
def test_images_that_are_none_leave_nothing_behind(tmp_path, images):
    (tmp_path / "file.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ComaError, match=images):
        demo(tmp_path / images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def _short(monkeypatch):
    for name, value in {
        "STEPS": 2,
        "BATCH_SIZE": 4,
        "IMAGE_SIZE": 32,
        "PATCH_SIZE": 2,
        "BASE_LR": 0.01,
    }.items():
        monkeypatch.setattr(demo_module, name, value)


@pytest.mark.usefixtures("_short")
def test_one_that_is_asked_to_stop_does_not_promise_to_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module, "STEPS", 6)
    draw_images(tmp_path / "photos", 9, size=(50, 40), name="{}.png")

    def stop_in_training(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted, match="coma demo does not resume, it begins anew"):
        demo(tmp_path / "photos", tmp_path / "out", progress=stop_in_training)
    assert (tmp_path / "out/shards").is_dir()


@pytest.mark.usefixtures("_short")
def test_ones_own_unlabelled_images(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    draw_images(Path("photos"), 9, size=(50, 40), name="{}.png")
    Path("photos/broken.jpg").write_bytes(b"\xff\xd8")
    stages: list[str] = []
    with caplog.at_level("INFO", logger="coma"):
        result = demo(Path("photos"), progress=lambda stage, done, total: stages.append(stage))
    assert result.out == Path("coma-demo")
    assert (result.train_images, result.val_images, result.set_aside, result.classes) == (9, 0, 1, 0)
    assert result.probe_before is None
    assert result.knn_after is None
    assert "no labels" in (result.no_probe or "")
    assert "no probe: " in caplog.text
    assert list(dict.fromkeys(stages)) == ["sharding", "training"]
    assert not (result.out / "images").exists()  # nothing was drawn
    assert sorted(path.name for path in Path("photos").iterdir())[-1] == "broken.jpg"  # all left as it was
    with Image.open(result.picture) as picture:
        assert picture.height > 5 * 170  # six rows of tiles
    assert result.report.exists()
    assert result.steps == 2
    assert result.images_seen == 8
