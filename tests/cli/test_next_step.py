"""The command that another one prints as the next step can be pasted, and works on these data."""

import json
import shlex
from pathlib import Path

import pytest
from drawn import draw_images

SMALL = "--model dyvit_nano --image-size 32 --patch-size 2 --batch-size 4 --workers 1".split()  # noqa: SIM905
STEP = [*SMALL, "--steps", "1"]


def next_words(done) -> list[str]:
    """The words after `coma` in the line `next  coma ...`, as a shell reads them."""
    assert done.code == 0, done.err
    (line,) = [line for line in (done.out + done.err).splitlines() if line.startswith("next")]
    first, *words = shlex.split(line.removeprefix("next"))
    assert first == "coma"
    return words


@pytest.mark.parametrize(
    ("images", "classes", "then"),
    [
        pytest.param(12, ["a", "b"], "probe", id="labelled"),
        pytest.param(12, [], "reconstruct", id="flat"),
        pytest.param(12, ["a"], "reconstruct", id="one class"),
        pytest.param(4, ["a", "b"], "reconstruct", id="too few to hold any out"),
        pytest.param(12, ["train/a", "train/b", "val/a", "val/b"], "probe", id="with val"),
        pytest.param(12, ["train/a", "train/b", "val"], "reconstruct", id="val without labels"),
    ],
)
def test_the_next_step_fits_the_data(tmp_path, monkeypatch, coma, images, classes, then) -> None:
    monkeypatch.chdir(tmp_path)
    draw_images(Path("it's my photos"), images, classes=classes)
    words = next_words(coma("shard", "it's my photos", "--workers", 1))
    assert words == ["pretrain", "it's my photos-shards"]
    words = next_words(coma(*words, *STEP, "--out", "run one"))
    assert words == [then, "run one"]
    done = coma(*words)
    assert done.code == 0
    held_out = then == "probe" and not any("val" in name for name in classes)
    assert ("a fifth of train is held out for testing" in done.err) == held_out


def test_every_command_leads_to_the_next(tmp_path, monkeypatch, coma) -> None:
    """From images to an export, by pasting what each prints; JSON has no such line."""
    monkeypatch.chdir(tmp_path)
    draw_images(Path("my photos"), 12, classes=("a", "b"))
    assert coma("shard", "my photos", "--workers", 1).code == 0
    for command in ("verify", "inspect"):
        done = coma(command, "my photos-shards")
        assert next_words(done) == ["pretrain", "my photos-shards"]
        assert "next" not in json.loads(coma(command, "my photos-shards", "--json").out)
    words = next_words(coma("plan", "my photos-shards", *STEP, "--out", "my run", "--no-measure"))
    assert words[:2] == ["pretrain", "my photos-shards"]
    assert sorted(words[2:]) == sorted([*STEP, "--out", "my run"])
    assert next_words(coma(*words)) == ["probe", "my run"]
    assert next_words(coma("reconstruct", "my run", "--count", "1")) == ["look", "my run"]
    for command in (["probe", "my run"], ["knn", "my run"], ["look", "my run", "--count", "1"], ["report", "my run"]):
        assert next_words(coma(*command)) == ["export", "my run", "exports/my run"]
    exported = coma("export", "my run", "exports/my run")
    (load,) = [line for line in exported.out.splitlines() if line.startswith("load")]
    names: dict[str, object] = {}
    exec(load.removeprefix("load").strip(), names)
    assert names["model"].num_features == 256
    assert "\nnext" not in coma("knn", "exports/my run", "my photos-shards").out


def test_what_is_not_sound_or_not_to_be_trained_on_leads_nowhere(tmp_path, monkeypatch, coma) -> None:
    monkeypatch.chdir(tmp_path)
    draw_images(Path("photos"), 4, classes=("val/a", "val/b"))
    assert coma("shard", "photos", "--workers", 1).code == 0
    for words in (["verify", "photos-shards"], ["inspect", "photos-shards"], ["inspect", "photos-shards/val"]):
        done = coma(*words)
        assert done.code == 0
        assert "\nnext" not in done.out
    (shard,) = Path("photos-shards/val").glob("*.tar")
    shard.write_bytes(bytes(shard.stat().st_size))
    done = coma("verify", "photos-shards")
    assert done.code == 3
    assert "\nnext" not in done.out


def test_images_to_test_on_alone_are_not_recommended_to_train_on(tmp_path, monkeypatch, coma) -> None:
    monkeypatch.chdir(tmp_path)
    draw_images(Path("photos"), 4, classes=("val/a", "val/b"))
    words = next_words(coma("shard", "photos", "--workers", 1))
    assert words == ["inspect", "photos-shards"]
    assert coma(*words).code == 0


def test_a_classifier_is_exported_whether_its_accuracy_was_measured_or_not(tmp_path, monkeypatch, coma) -> None:
    monkeypatch.chdir(tmp_path)
    draw_images(Path("photos"), 12, classes=("a", "b"))
    assert coma("shard", "photos", "--workers", 1).code == 0
    assert coma("pretrain", *STEP, "--out", "run").code == 0
    fine = ("--batch-size", 4, "--epochs", 1, "--stop-after", 3, "--rand-augment", 0, "--workers", 1)
    words = next_words(coma("finetune", "run", *fine, "--out", "fine tuned"))
    assert words == ["export", "fine tuned", "exports/fine tuned"]
    assert coma(*words).code == 0
