"""What is foreseen of a run is what it then does; foreseeing leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from small_runs import small

from coma.errors import UsageError
from coma.forecast.estimate import estimate
from coma.training import pretrain


def test_a_run_is_what_was_foreseen_of_it(data: Path, elsewhere: Path) -> None:
    config = small(data, Path("run"), ds_config="zero2", save_every=1)
    forecast = estimate(config)
    assert not list(elsewhere.iterdir())
    assert forecast.measured is not None
    shown = forecast.to_json()
    assert shown["activations_bytes"] == 4 * forecast.footprint.activations.kept > 0
    assert shown["device_memory_bytes"] > shown["activations_bytes"] + forecast.footprint.state.device
    assert shown["hours"] * 3600 == pytest.approx(4 * shown["step_s"])
    assert shown["images_per_s"] == pytest.approx(4 / shown["step_s"])
    pretrain(dataclasses.replace(config, stop_after=3))
    resolved = json.loads(Path("run/config.json").read_text())["resolved"]
    same = ["data", "parameters", "steps", "epochs", "batch_size", "micro_batch_size", "peak_lr"]
    same += ["warmup_steps", "precision", "stage", "save_every"]
    assert {name: shown[name] for name in same} == {name: resolved[name] for name in same}
    assert shown["checkpoints"] == len(list(Path("run/checkpoints").glob("step-*"))) == 2

    before = sorted(elsewhere.rglob("*"))
    again = estimate(config, measure=False)
    assert (again.begun_at, again.step_s, again.activation_bytes) == (3, None, shown["activations_bytes"])
    assert sorted(elsewhere.rglob("*")) == before


@pytest.mark.slow
def test_more_processes_share_the_work_and_the_states(data: Path, elsewhere: Path) -> None:
    Path("hosts").write_text("one slots=2\n# none\ntwo slots=2\n")
    alone = estimate(small(data, Path("run")), measure=False)
    shared = estimate(small(data, Path("run"), hostfile=Path("hosts")), measure=False)
    assert (shared.hosts, shared.resolved.world_size, shared.resolved.micro_batch_size) == (2, 4, 1)
    assert shared.footprint.state.optimizer == pytest.approx(alone.footprint.state.optimizer / 4, abs=100)
    with pytest.raises(UsageError, match="does not divide over 3 processes"):
        estimate(small(data, Path("run"), devices=3), measure=False)


@pytest.mark.slow
def test_what_fits_is_what_the_flags_then_give(data: Path, elsewhere: Path) -> None:
    """Each choice is the forecast of the run with that flag; larger micro-batches and less recomputation take more."""
    config = small(data, Path("run"), batch_size=8)
    forecast = estimate(config, measure=False, device_memory=400_000_000)
    sizes = {each.flag: each.device_bytes for each in forecast.choices}
    fits = {each["flag"]: each["fits"] for each in forecast.to_json()["choices"]}
    assert list(sizes) == [
        *(f"--micro-batch-size {images}" for images in (8, 4, 2, 1)),
        *(f"--grad-checkpointing {stages}" for stages in ("none", "1,2", "all")),
        *(f"--ds-config {name}" for name in ("zero0", "zero1", "zero2_offload", "zero3_offload")),
    ]
    for flag, field, value in (
        ("--micro-batch-size 2", "micro_batch_size", 2),
        ("--grad-checkpointing 1,2", "grad_checkpointing", "1,2"),
        ("--ds-config zero0", "ds_config", "zero0"),
    ):
        other = estimate(dataclasses.replace(config, **{field: value}), measure=False, device_memory=10**10)
        assert other.step_bytes == sizes[flag]
    assert {each.flag for each in forecast.choices if each.is_the_run} == {
        "--micro-batch-size 8",
        "--grad-checkpointing none",
        "--ds-config zero1",
    }
    assert sizes["--micro-batch-size 8"] > sizes["--micro-batch-size 4"] > sizes["--micro-batch-size 1"]
    recomputed = [sizes[f"--grad-checkpointing {stages}"] for stages in ("none", "1,2", "all")]
    assert recomputed == sorted(recomputed, reverse=True)
    assert not fits["--ds-config zero1"]  # its bucket alone has 2 GB on a GPU
    assert fits["--ds-config zero0"]
    auto = estimate(dataclasses.replace(config, micro_batch_size="auto", ds_config="zero0"), measure=False)
    assert auto.resolved.micro_batch_size == 8
