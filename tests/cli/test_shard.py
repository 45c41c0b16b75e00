"""`coma shard`, `verify`, `inspect` as typed: words, files and exit codes."""

import json
from pathlib import Path

import pytest
from drawn import draw_images
from PIL import Image


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with photographs in pets/."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("cat", "dog")):
        draw_images(Path("pets", name), 4, size=(32, 24), name="{}.JPEG", seed=seed)
    return tmp_path


def test_the_road_from_a_folder_to_a_checked_data_set(here, coma):
    Path("pets/cat/bad.jpg").write_bytes(b"")
    done = coma("shard", "pets/", "--workers", 1)
    assert done.code == 0, done.err
    assert "found 9 images in split train, of 2 classes" in done.err
    lines = dict(line.split("  ", 1) for line in done.out.splitlines())
    assert lines["set aside"].strip() == "1 (1 empty): see quarantine.parquet"
    assert lines["next"].strip() == "coma pretrain pets-shards"

    again = coma("shard", "pets", "--json")
    assert "pets-shards is complete already: nothing to do" in again.err
    summary = json.loads(again.out)
    assert (summary["found"], summary["kept"], summary["set_aside"]) == (9, 8, 1)
    assert summary["out"] == "pets-shards"

    sound = coma("verify")
    assert sound.code == 0, sound.err
    assert "none" in sound.out
    described = json.loads(coma("inspect", "pets-shards", "--json", "--sheet", "sheet.png").out)
    assert described["splits"]["train"]["samples"] == 8
    assert Image.open("sheet.png").size[0] > 100
    assert "8 jpeg" in coma("inspect").out

    tar = next(Path("pets-shards/train").glob("*.tar"))
    damaged = bytearray(tar.read_bytes())
    damaged[2000] ^= 1
    tar.write_bytes(damaged)
    differs = coma("verify", "pets-shards")
    assert differs.code == 3
    assert f"train/{tar.name} 00000000" in differs.out
    assert differs.err.startswith("error: pets-shards: 1 difference from its manifest")
    assert len(json.loads(coma("verify", "--json").out)["problems"]) == 1


def test_the_current_folder_as_source(here, coma, monkeypatch):
    monkeypatch.chdir(here / "pets")
    done = coma("shard", ".", "--workers", 1)
    assert done.code == 0, done.err
    assert (here / "pets/pets-shards/_info.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nowhere"], 2, "no such file or folder: nowhere"),
        (["pets/cat/0.JPEG"], 2, "pets/cat/0.JPEG is one image; give the folder"),
        (["empty"], 3, "no images in empty"),
        (["pets", "full"], 2, "full is not empty (it holds thesis.tex)"),
        (["pets", "pets/cat/0.JPEG"], 2, "pets/cat/0.JPEG is a file; name a folder"),
        (["pets", "--resize", "64", "--quality", "0"], 2, "--quality is 0; it must be from 1 to 100"),
        (["pets", "--quality", "80"], 2, "--quality 80 only matters"),
        (["pets", "--val-fraction", "1.5"], 2, "--val-fraction is 1.5; it must be at least 0 and below 1"),
        (["pets", "--shard-bytes", "lots"], 2, "--shard-bytes lots is not a size"),
        (["pets", "--shard-bytes", "0"], 2, "--shard-bytes is 0; it must be at least 1"),
        (["pets", "--workers", "0"], 2, "--workers is 0; it must be at least 1"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(here, coma, arguments, code, says):
    Path("empty").mkdir()
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("precious")
    before = sorted(here.rglob("*"))
    done = coma("--quiet", "shard", *arguments)
    assert done.code == code
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("command", ["shard", "verify", "inspect"])
def test_help_fits_a_terminal(command, coma, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = coma(command, "--help")
    assert done.code == 0
    assert 0 < max(map(len, done.out.splitlines())) <= 80
