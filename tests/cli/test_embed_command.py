"""`coma embed` as typed: what it prints, what it refuses, and the codes it ends with."""

import json
from pathlib import Path

import pytest
from drawn import draw_images

SMALL = ("--untrained", "--image-size", 64, "--batch-size", 4)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    draw_images(tmp_path / "photos", 9, classes=("ants", "bees"), size=(80, 70), smooth=True)
    (tmp_path / "photos" / "ants" / "broken.jpg").write_bytes(b"not one")
    return tmp_path / "photos"


def test_it_says_what_it_wrote(photos, coma):
    done = coma("embed", "test_resnet", "photos", *SMALL)
    assert done.code == 0
    lines = dict(line.split("  ", 1) for line in done.out.splitlines())
    assert lines["out"].strip() == "photos-test_resnet.parquet"
    assert lines["images"].strip() == "9 (train 9)"
    assert lines["set aside"].strip() == "1 (photos-test_resnet.quarantine.parquet)"
    assert "96 values, float32" in lines["vector"]
    assert "OUT: photos-test_resnet.parquet" in done.err
    assert "embedding split train (10 images) with test_resnet" in done.err
    assert "1 image is set aside (not an image): photos-test_resnet.quarantine.parquet" in done.err
    assert max(map(len, done.out.splitlines())) <= 80
    again = coma("embed", "test_resnet", "photos", *SMALL, "--neighbours", 2, "--json")
    assert "complete already" in again.err
    result = json.loads(again.out)
    assert (result["images"], result["set_aside"], result["images_per_s"]) == (9, 1, None)
    for name in ("out", "table", "quarantine", "neighbours", "picture"):
        assert Path(result[name]).is_file()
    assert len(result["outliers"]) == 9


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["test_resnet", "nowhere", *SMALL], 2, "error: no such file or folder: nowhere"),
        (["nothing", "photos"], 2, "error: no run, export or timm model named 'nothing'"),
        (["dyvit_nano", "photos"], 2, "give --untrained"),
        (["test_resnet", "photos", "out.csv", *SMALL], 2, "end it in .parquet or .npy"),
        (["test_resnet", "photos", *SMALL, "--stride", "8"], 2, "--stride 8 is of patch maps: add --patches"),
        (["test_resnet", "photos", *SMALL, "--query", "x"], 2, "add --neighbours K"),
        (["photos", "photos"], 3, "error: photos is not a run folder"),
    ],
)
def test_a_mistake_is_one_line(words, code, message, photos, coma):
    done = coma("embed", *words)
    assert done.code == code
    assert message in done.err
    assert "Traceback" not in done.err
    assert [path.name for path in photos.parent.iterdir()] == ["photos"]
