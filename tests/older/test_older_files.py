"""Shards, runs and exports that an earlier version wrote are read, gone on with and scored as they were by it.

`format-2.tar.xz` was written by the version before the folders of `coma/` were rearranged, from 24 drawn images:
`shards/`, a pre-training run and a fine-tuning run of 4 steps each that were left after 2, and an export of the first.
"""

from __future__ import annotations

import dataclasses
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import generate_default_cfgs, register_model

from coma.errors import UsageError
from coma.evaluation.score_run import score_run
from coma.model.dyvit import DyViT
from coma.model.dyvit_variants import _cfg, _create
from coma.shards.check.verify import verify
from coma.shards.manifest import read_manifest
from coma.training import FinetuneConfig, PretrainConfig, finetune, pretrain

default_cfgs = generate_default_cfgs({"dyvit_pico.older": _cfg()})


@register_model  # type: ignore[untyped-decorator]
def dyvit_pico(pretrained: bool = False, **kwargs: Any) -> DyViT:
    """A backbone of a few thousand weights, so that its checkpoints are small."""
    shape = {
        "dims": (4, 8, 16, 32),
        "depths": (1, 1, 1, 1),
        "head_dims": (4, 4, 8, 8),
        "heads": (((16, 1),), ((4, 1), (16, 1)), ((4, 1), (None, 1)), ((None, 2),)),
    }
    return _create("dyvit_pico", pretrained, shape | kwargs)


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files, in the current folder."""
    with tarfile.open(Path(__file__).with_name("format-2.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def losses(run: str) -> list[float]:
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_shards_verify(older: Path) -> None:
    assert verify(Path("shards")).problems == ()
    assert read_manifest(Path("shards")).fingerprint in Path("pretrained/config.json").read_text()


def test_a_pretraining_run_goes_on_as_it_would_have(older: Path) -> None:
    config = PretrainConfig(
        data="shards", out=Path("pretrained"), model="dyvit_pico", image_size=32, patch_size=2,
        steps=4, batch_size=4, workers=1, save_every=2,
    )  # fmt: skip
    result = pretrain(config)
    assert result["steps"] == 4
    assert losses("pretrained") == pytest.approx(
        [1.3084995746612549, 1.282995581626892, 1.2893643379211426, 1.290908694267273], rel=1e-5
    )


def test_a_pretraining_run_is_extended(older: Path) -> None:
    config = PretrainConfig(
        data="shards", out=Path("pretrained"), model="dyvit_pico", image_size=32, patch_size=2,
        steps=3, batch_size=4, workers=1, save_every=2,
    )  # fmt: skip
    with pytest.raises(UsageError, match="more steps than pretrained has, which are 4, and these are 3"):
        pretrain(dataclasses.replace(config, extend=True))
    assert pretrain(dataclasses.replace(config, steps=6, extend=True))["steps"] == 6
    assert losses("pretrained")[:2] == pytest.approx([1.3084995746612549, 1.282995581626892], rel=1e-5)
    assert len(losses("pretrained")) == 6


def test_a_finetuning_run_goes_on_as_it_would_have(older: Path) -> None:
    config = FinetuneConfig(
        source=Path("pretrained"), data="shards", out=Path("finetuned"), image_size=32,
        steps=4, batch_size=4, workers=1, save_every=2, ema_decay=0.5, mixup=0.8,
    )  # fmt: skip
    assert finetune(config)["steps"] == 4
    assert losses("finetuned") == pytest.approx(
        [0.6931747198104858, 0.6931307315826416, 0.6931627988815308, 0.693149745464325], rel=1e-6
    )


def test_a_run_and_its_export_score_as_they_did(older: Path) -> None:
    for path in ("pretrained", "export"):
        scores = score_run(Path(path), "shards", probe=False, knn=True)
        assert (scores["knn"], scores["rankme"]) == pytest.approx((16.667, 12.215), abs=0.01)


def test_an_export_is_a_timm_model(older: Path) -> None:
    model = timm.create_model("local-dir:export", pretrained=True).eval()
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 32)
