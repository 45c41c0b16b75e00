"""Several data sets on the command line, in files and in Python."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import coma
from coma.cli.main import app
from coma.shards.option import words_of
from coma.training import PretrainConfig

DATA = ["a-shards:0.7", "s3://host:9000/b:0.3"]


def printed(*arguments: str) -> dict[str, Any]:
    """The options that a command would run with."""
    import yaml

    done = CliRunner().invoke(app, ["pretrain", *arguments, "--print-config"])
    assert done.exit_code == 0, done.output
    return dict(yaml.safe_load(done.output))


def test_data_sets_stand_side_by_side() -> None:
    assert printed(*DATA)["data"] == DATA
    assert printed("a-shards")["data"] == "a-shards"
    assert printed()["data"] is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.yaml", "data: [a-shards:0.7, 's3://host:9000/b:0.3']"),
        ("lines.yaml", "data:\n- a-shards:0.7\n- s3://host:9000/b:0.3"),
        ("run.toml", f"data = {json.dumps(DATA)}"),
        ("run.json", json.dumps({"data": DATA})),
    ],
)
def test_a_file_lists_them(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert printed("--config", str(tmp_path / name))["data"] == DATA
    assert printed("c-shards", "--config", str(tmp_path / name))["data"] == "c-shards"
    (tmp_path / "one.yaml").write_text("data: a-shards")
    assert printed("--config", str(tmp_path / "one.yaml"))["data"] == "a-shards"


def test_words_and_json_give_the_same_options() -> None:
    config = PretrainConfig(data=tuple(DATA), epochs=3)
    assert words_of(config)[:2] == DATA
    assert PretrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert PretrainConfig(data=("a-shards",)).data == "a-shards"


def test_python_takes_pairs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(coma.errors.DataError, match="no sharded data set at a-shards"):
        coma.pretrain([(Path("a-shards"), 0.7), ("b-shards", 0.3)])
    with pytest.raises(coma.errors.UsageError, match=r"data has 5; give a folder or a URL"):
        coma.pretrain(["a-shards", 5])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrain", "a:0.5", "b"], "a:0.5 has a share and b has none"),
        (["pretrain", "a:0", "b:1"], "the share of a is '0'"),
        (["pretrain", "a:1"], "a:1 is the only data set"),
        (["plan", "a:0.5", "b"], "a:0.5 has a share and b has none"),
        (["finetune", "runs/x", "a:0.5", "b:0.5"], "unexpected extra argument"),
        (["probe", "runs/x", "a:0.5", "b:0.5"], "unexpected extra argument"),
        (["bench", "loader", "a:0.5", "b:0.5"], "unexpected extra argument"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, arguments)
    shown = " ".join((done.output + str(done.exception or "")).split())
    assert done.exit_code != 0
    assert words in shown
