"""`coma plan` as typed."""

import json

import pytest
from drawn import draw_images, shard_images

SMALL = ["--model", "dyvit_nano", "--image-size", "32", "--patch-size", "2", "--steps", "100"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    shard_images(draw_images(tmp_path / "images", 8), tmp_path / "work" / "data")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_it_says_what_the_run_would_take_and_writes_nothing(here, coma, monkeypatch):
    before = sorted(here.rglob("*"))
    monkeypatch.setenv("COLUMNS", "80")
    done = coma("plan", *SMALL, "--batch-size", 4)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert max(map(len, lines[1:-1])) <= 80  # the first has a path, the last a command to paste
    assert "batch          4 images = 1 device x 4" in lines
    elsewhere = coma("plan", *SMALL, "--device-memory", "80GB", "--no-measure").out
    assert "  --ds-config zero2_offload " in elsewhere  # as it is typed
    assert any(line.startswith("time") and "not measured" not in line for line in lines)
    shown = json.loads(coma("plan", *SMALL, "--batch-size", 4, "--devices", 2, "--no-measure", "--json").out)
    assert (shown["steps"], shown["micro_batch_size"], shown["hours"]) == (100, 2, None)
    assert sorted(here.rglob("*")) == before


@pytest.mark.slow
def test_recomputed_stages_keep_less(here, coma):
    shown = {}
    for stages in ("none", "1,2", "all"):
        arguments = [*SMALL, "--batch-size", 1, "--grad-checkpointing", stages, "--precision", "bf16"]
        shown[stages] = json.loads(coma("plan", *arguments, "--json").out)
    kept = {stages: each["activations_bytes"] for stages, each in shown.items()}
    assert kept["all"] < 0.3 * kept["none"]
    assert kept["all"] < kept["1,2"] < 0.7 * kept["none"]
    assert {each["precision"] for each in shown.values()} == {"bf16"}
    said = coma("plan", *arguments).out
    assert "of 1 images; recomputed: all" in said


def test_mistakes_are_those_of_pretrain(here, coma):
    for arguments, code, words in (
        (["--model", "dyvit_bse"], 2, "dyvit_base"),
        (["--ds-config", "zero7"], 2, "zero7"),
        (["--grad-checkpointing", "1,9"], 2, "--grad-checkpointing names stage 9, and this backbone has 4 stages"),
        (["--precision", "fp16", "--ds-config", "zero0"], 2, "--precision fp16 trains wrongly at ZeRO stage 0"),
        (["--batch-size", 0], 2, "--batch-size is 0"),
        (["--launched", "x"], 2, "No such option"),
        (["absent"], 3, "no such folder"),
    ):
        done = coma("plan", *SMALL, *arguments)
        assert done.code == code, done.err
        assert words in done.err
