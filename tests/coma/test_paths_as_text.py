"""The Python API takes paths as text wherever it takes them as paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from untrained_runs import write_run

from coma.evaluation.score import can_be_probed, labelled_manifests
from coma.evaluation.score_run import score_run
from coma.exports.export import export_run
from coma.exports.folder import read_export
from coma.exports.load import load_export
from coma.pictures.look import look_at
from coma.pictures.reconstruct import reconstruct_run
from coma.pipeline import Stream
from coma.runs.read import load_autoencoder, read_config, run_of
from coma.runs.report import write_report
from coma.shards.check.verify import verify
from coma.shards.describe.card import data_card
from coma.shards.describe.contact_sheet import contact_sheet, write_contact_sheet
from coma.shards.describe.describe import describe
from coma.shards.manifest import read_info, read_manifest, split_names
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard
from coma.training.tasks.pretrained import read_backbone


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("text")
    export_run(write_run(folder / "run"), folder / "exported")
    (folder / "data").symlink_to(data)
    (folder / "images").symlink_to(data.parent / "images")
    return folder


CALLS: dict[str, Callable[[], Any]] = {
    "shard": lambda: shard("images", "sharded", ShardOptions(workers=1)),
    "verify": lambda: verify("data"),
    "describe": lambda: describe("data", measured=0),
    "data_card": lambda: data_card("data"),
    "contact_sheet": lambda: contact_sheet("data", images=2),
    "write_contact_sheet": lambda: write_contact_sheet("data", "sheet.png"),
    "read_info": lambda: read_info("data"),
    "split_names": lambda: split_names("data"),
    "read_manifest": lambda: read_manifest("data"),
    "Stream": lambda: Stream("data", batch_size=2, workers=1).close(),
    "can_be_probed": lambda: can_be_probed("data"),
    "labelled_manifests": lambda: labelled_manifests("data"),
    "run_of": lambda: run_of("run"),
    "read_config": lambda: read_config("run"),
    "load_autoencoder": lambda: load_autoencoder("run"),
    "write_report": lambda: write_report("run"),
    "read_backbone": lambda: read_backbone("run"),
    "score_run": lambda: score_run("run", "data", probe=False, device="cpu"),
    "score an export": lambda: score_run("exported", "data", probe=False, device="cpu"),
    "look_at": lambda: look_at("run", ["images"], out="look.png", count=1),
    "reconstruct_run": lambda: reconstruct_run("run", ["data"], out="painted.png", count=1),
    "export_run": lambda: export_run("run", "other"),
    "read_export": lambda: read_export("exported"),
    "load_export": lambda: load_export("exported"),
}


@pytest.mark.parametrize("name", CALLS)
def test_text_does_for_a_path(here: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(here)
    CALLS[name]()
