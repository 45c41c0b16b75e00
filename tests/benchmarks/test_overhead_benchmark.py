"""The benchmark of the training loop runs both loops and compares them; its figures are not for a test."""

import pytest
from drawn import sharded

from benchmarks.overhead import measure
from coma.training import PretrainConfig


@pytest.mark.slow
def test_both_loops_are_timed_and_compared(tmp_path):
    sharded(tmp_path, 8, size=(48, 40))
    run = tmp_path / "run"
    config = PretrainConfig(
        data=tmp_path / "data",
        out=run,
        model="dyvit_tiny",
        image_size=32,
        patch_size=2,
        batch_size=4,
        workers=1,
    )
    result = measure(config, steps=2, rounds=1)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 8  # the real loop, two rounds
    assert result["steps"] == 2
    for clock, ratio in result["ratio"].items():
        bare, coma = (result["step_s"][name][clock] for name in ("bare", "coma"))
        assert bare > 0
        assert ratio == pytest.approx(coma / bare)
        assert result["added_s"][clock] == [pytest.approx(coma - bare)]
