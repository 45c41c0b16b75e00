"""`coma export --push`: what arrives at the Hub is the export, in one commit, and loads from there.

`test_push.py` runs this file in a fresh process.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard, constants
from model_hub import OWNER, TOKEN, HubState, model_hub
from PIL import Image
from untrained_runs import load, write_run

import coma
from coma.errors import ComaError, UsageError
from coma.exports.export import export_run

NAME = f"{OWNER}/nano"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubState]:
    with model_hub(tmp_path / "cache") as state:
        yield state


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "run", steps=(3, 7))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 0, "knn": 40.0, "rankme": 20.0}\n{"step": 5, "probe": 70.5}\n')
        file.write('{"step": 7, "probe": 71.5, "data": "s3://me:secret@bucket/a b"}\n')
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_arrives_is_the_export_and_loads_from_there(run: Path, hub: HubState, tmp_path: Path) -> None:
    result = coma.export(run, tmp_path / "out", with_decoder=True, license="apache-2.0", push=NAME)
    repository = hub.repositories[NAME]
    assert repository.files == contents(tmp_path / "out")
    assert set(repository.files) == {
        *("README.md", "config.json", "curves.png", "decoder.safetensors", "model.safetensors"),
    }
    assert repository.messages == ["dyvit_nano after 7 steps"]
    assert not repository.private
    assert (result.url, result.commit) == (f"{hub.url}/{NAME}", repository.sha())

    model = timm.create_model(f"hf-hub:{NAME}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images), load(tmp_path / "out")(images))

    card = ModelCard(repository.files["README.md"].decode())
    data: Any = card.data
    assert (data.library_name, data.license, data.model_name) == ("timm", "apache-2.0", "nano")
    assert "self-supervised" in data.tags
    found = {(each.task_name, each.dataset_name): each.metric_value for each in data.eval_results}
    assert found == {
        ("20 nearest neighbours", "photos-shards"): 61.25,
        ("linear probe", "photos-shards"): 70.5,
        ("linear probe", "s3://bucket/a b"): 71.5,
    }
    assert f'timm.create_model("hf-hub:{NAME}", pretrained=True)' in card.text
    assert "](curves.png)" in card.text
    assert "secret" not in card.content
    with Image.open(tmp_path / "out" / "curves.png") as picture:
        assert picture.size == (1280, 360)
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 20


def test_pushed_again_it_replaces_what_was_there(run: Path, hub: HubState, tmp_path: Path) -> None:
    export_run(run, tmp_path / "out", with_decoder=True, license="mit", push=NAME, private=True)
    first = hub.repositories[NAME]
    assert first.private
    first.commits[-1]["notes.txt"] = b"of the owner"
    uploads = [call for call in hub.calls if call.startswith("PUT")]
    export_run(run, tmp_path / "out", with_decoder=True, license="mit", push=NAME)
    assert len(first.commits) == 2  # nothing has changed, so there is no new one
    assert [call for call in hub.calls if call.startswith("PUT")] == uploads
    export_run(run / "checkpoints" / "step-000003", tmp_path / "out", license="mit", push=NAME)
    assert len(first.commits) == 3
    assert first.files == {**contents(tmp_path / "out"), "notes.txt": b"of the owner"}
    assert "decoder.safetensors" not in first.files
    assert first.private


def test_a_run_starts_from_the_hub_and_needs_it_no_more(run: Path, hub: HubState, data: Path, tmp_path: Path) -> None:
    from small_runs import lines, small, weights_of

    from coma.training import pretrain

    export_run(run, tmp_path / "out", with_decoder=True, license="mit", push=NAME)
    config = dataclasses.replace(
        small(data, tmp_path / "more", steps=3, init=f"hf-hub:{NAME}", evaluate_every=1), model="dyvit_nano"
    )
    pretrain(dataclasses.replace(config, out=tmp_path / "whole"))
    assert lines(tmp_path / "whole")[0]["step"] == 0
    pretrain(dataclasses.replace(config, stop_after=1))
    hub.repositories.clear()
    (tmp_path / "cache").rename(tmp_path / "gone")
    calls = len(hub.calls)
    assert pretrain(config)["finished"]
    assert len(hub.calls) == calls
    ended, expected = weights_of(tmp_path / "more"), weights_of(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in ended.items())
    content = json.loads((tmp_path / "more" / "config.json").read_text())
    assert content["resolved"]["init"]["source"] == f"hf-hub:{NAME}"
    export_run(tmp_path / "more", tmp_path / "next")
    _, head, text = (tmp_path / "next" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["base_model"] == NAME
    assert f"| started from | hf-hub:{NAME}" in text.replace("\\", "")
    with pytest.raises(ComaError, match=r"is not on the Hub.*check the name, and HF_TOKEN") as caught:
        pretrain(dataclasses.replace(config, out=tmp_path / "other"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "error", "named"),
    [
        ({"push": "nano"}, UsageError, "'nano' is no name of a repository: give OWNER/NAME"),
        ({"push": "a/b/c"}, UsageError, "is no name of a repository"),
        ({"push": "a b/c"}, UsageError, "is no name of a repository"),
        ({"push": NAME, "license": None}, UsageError, "no licence is guessed: give --license"),
        ({"push": None, "private": True}, UsageError, "--private is for --push"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    run: Path, hub: HubState, tmp_path: Path, given: dict[str, Any], error: type[ComaError], named: str
) -> None:
    with pytest.raises(error, match=named) as caught:
        export_run(run, tmp_path / "out", **{"license": "mit", **given})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert hub.calls == []


def test_without_a_token_a_network_or_rights_it_is_one_line(
    run: Path, hub: HubState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(error: type[ComaError], named: str, repository: str = NAME) -> None:
        with pytest.raises(error, match=named) as caught:
            export_run(run, tmp_path / "out", license="mit", push=repository)
        assert "\n" not in str(caught.value)

    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused(ComaError, r"nothing was written: Invalid user token.*check the token")
    assert not (tmp_path / "out").exists()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    refused(UsageError, r"needs a token of the Hub that may write: `hf auth login`")
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    refused(ComaError, r"403.*don't have the rights.*check it, and that 'other' is yours", "other/nano")
    assert (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        refused(ComaError, r"nothing was written: .*refused.*check the network")
    assert hub.repositories == {}


def test_a_push_that_fails_leaves_all_or_nothing(run: Path, hub: HubState, tmp_path: Path) -> None:
    export_run(run / "checkpoints" / "step-000003", tmp_path / "out", license="mit", push=NAME)
    before = dict(hub.repositories[NAME].files)
    hub.broken = "/commit/"
    with pytest.raises(ComaError, match=r"could not be pushed, and the export is in .*500") as caught:
        export_run(run, tmp_path / "out", license="mit", push=NAME)
    assert "\n" not in str(caught.value)
    assert hub.repositories[NAME].files == before
    hub.broken = None
    export_run(run, tmp_path / "out", license="mit", push=NAME)
    assert hub.repositories[NAME].files == contents(tmp_path / "out") != before


def test_the_command_pushes_and_says_where(run: Path, hub: HubState, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "coma", "export", str(run), "out", "--license", "mit", "--push", NAME, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["url"] == f"{hub.url}/{NAME}"
    assert done.stderr == ""
