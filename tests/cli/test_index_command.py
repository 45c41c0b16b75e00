"""`coma index` as typed."""

import json
from pathlib import Path

import pytest
import typer
import webdataset
from typer.testing import CliRunner

from coma.cli.index import index
from coma.errors import DataError

app = typer.Typer()
app.command()(index)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A current folder with photos/photos-000000.tar, whose last image is no good."""
    import io

    import numpy as np
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    generator = np.random.default_rng(0)
    with webdataset.TarWriter("photos/photos-000000.tar", encoder=False) as writer:
        for i in range(5):
            file = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (24, 32, 3), np.uint8)).save(file, "JPEG")
            writer.write({"__key__": f"{i}", "jpg": file.getvalue() if i < 4 else b"", "cls": b"0"})
    return Path("photos")


def test_a_folder_of_tars_becomes_a_data_set(photos):
    done = CliRunner().invoke(app, ["photos", "--workers", "1"])
    assert done.exit_code == 0, done.output
    lines = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert lines["found"].strip() == "5 images"
    assert lines["kept"].strip() == "4, split train 4"
    assert lines["set aside"].strip().startswith("1 (1 empty): see quarantine.parquet; they stay in their tars")
    assert lines["next"].strip() == "coma pretrain photos-index"

    again = CliRunner().invoke(app, ["photos", "--json"])
    summary = json.loads(again.stdout)
    assert (summary["found"], summary["kept"], summary["reasons"]) == (5, 4, {"empty": 1})
    assert summary["splits"] == {
        "train": {"images": 4, "shards": 1, "bytes": Path("photos/photos-000000.tar").stat().st_size}
    }
    assert summary["out"] == "photos-index"


def test_a_damaged_tar_is_an_error_of_one_line(photos):
    tar = photos / "photos-000000.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    done = CliRunner().invoke(app, ["photos", "out", "--workers", "1"])
    assert isinstance(done.exception, DataError)
    assert str(done.exception).startswith("1 tar cannot be read: ")
    assert not Path("out/_info.json").exists()
