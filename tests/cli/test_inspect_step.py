"""`coma inspect RUN --step N` as typed: words, files and exit codes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from drawn import sharded
from PIL import Image

from coma.training import PretrainConfig, pretrain

BATCH = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a data set and a run of two steps on it."""
    place = tmp_path_factory.mktemp("inspected")
    classes = ("a class of a long name 0", "a class of a long name 1")
    sharded(place, BATCH, classes=classes, size=(300, 40), name="{} [of many] with a long name.jpg")
    size = {"model": "dyvit_nano", "image_size": 32, "patch_size": 2, "batch_size": BATCH}
    pretrain(PretrainConfig(data=place / "data", out=place / "run", steps=2, workers=1, **size))
    return place


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A folder to work in with `run`, whose data are where they were."""
    shutil.copytree(made / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_step_is_shown_on_a_terminal(here, coma, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = coma("inspect", "run", "--step", 2)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert max(map(len, lines[lines.index("") :])) <= 80  # those above have paths
    assert "step    2 of 2, epoch 2" in lines
    assert {"crops   32 px", "views   2 + 2 of 4 mask units"} <= set(lines)
    assert any(line.startswith("digest  ") and line.endswith(" as in metrics.jsonl") for line in lines)
    assert "[of many]" in done.out
    assert "2 more: --json has them all" in lines
    assert lines[-1] == "sheet of 12 of 12 images: run/step-000000002.png"
    with Image.open("run/step-000000002.png") as page:
        assert page.format == "PNG"


def test_json_has_every_row(here, coma):
    done = coma("inspect", "run", "--step", 1, "--json", "--sheet", "mine.png")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert sorted(row["sample"] for row in found["rows"]) == list(range(BATCH))
    assert found["matches"] is True
    assert found["sheet"] == "mine.png"
    assert Path("mine.png").is_file()
    assert not list(Path("run").glob("step-*.png"))


def test_what_differs_is_shown_and_said_aloud(here, coma):
    path = Path("run/metrics.jsonl")
    first = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps({**first, "batch_digest": "f" * 16}) + "\n")
    done = coma("inspect", "run", "--step", 1)
    assert done.code == 3
    assert f"but {'f' * 16} in metrics.jsonl" in done.out
    assert "sheet of 12" in done.out
    assert done.err.startswith("error: these are not the images that run saw")
    assert "no record of this step" in coma("inspect", "run", "--step", 2).out


def test_substitutes_are_named(here, coma):
    keys = [row["key"] for row in json.loads(coma("inspect", "run", "--step", 2, "--json").out)["rows"]]
    shard = "coma-train-000000.tar"
    lines = [
        {"step": 2, "key": key, "shard": shard, "reason": "hash", "substitute": substitute}
        for key in keys[:1]
        for substitute in keys[1:]  # whichever of them the rule would have tried
    ]
    Path("run/ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = coma("inspect", "run", "--step", 2)
    assert done.code == 0, done.err
    assert "images  12, 1 of them substituted" in done.out
    assert f" stands in for {keys[0]}: hash" in done.out


def test_mistakes_are_one_line(made, here, coma):
    for arguments, code, words in (
        (["run"], 2, "run is a run: add --step N, 1 to 2"),
        ([made / "data", "--step", 1], 2, "is a data set, and --step is one of a run's"),
        ([made / "data" / "train", "--step", 1], 2, "is a data set, and --step is one of a run's"),
        (["--step", 1], 2, "coma inspect RUN --step N"),
        (["run", "--step", 3], 2, "run has 2 steps: step 3 is none of them"),
        (["run", "--step", 1, "--sheet", "absent/x.png"], 2, "cannot write absent/x.png"),
        (["absent", "--step", 1], 3, "absent is not a run folder"),
    ):
        done = coma("inspect", *arguments)
        assert done.code == code, done.err
        assert words in done.err
        assert len(done.err.splitlines()) == 1


@pytest.mark.slow
def test_neither_deepspeed_nor_a_checkpoint_is_needed(here):
    shutil.rmtree("run/checkpoints")
    code = "import sys; sys.argv = 'coma inspect run --step 2'.split()\n"
    code += "from coma.cli.main import app\ntry:\n    app()\nfinally:\n    assert 'deepspeed' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "sheet of 12 of 12" in done.stdout
