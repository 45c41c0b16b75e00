"""Arithmetic of memory and disk, against the paper's table and against what DeepSpeed really writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import small
from toy_engine import resolved_run

from coma.forecast.disk import checkpoint_bytes
from coma.runs.read import latest_checkpoint
from coma.training import pretrain
from coma.training.memory.state import state_memory

BF16 = {"bf16": {"enabled": True}}


@pytest.mark.parametrize(("stage", "bytes_a_parameter"), [(0, 16.0), (1, 4 + 12 / 64), (2, 2 + 14 / 64), (3, 16 / 64)])
def test_stages_part_what_the_paper_says(stage: int, bytes_a_parameter: float) -> None:
    """ZeRO's table 1: mixed precision, K = 12, 7.5 B parameters on 64 devices, 120, 31.4, 16.6 and 1.9 GB."""
    parameters = 7_500_000_000
    memory = state_memory(parameters, resolved_run(f"zero{stage}", 64, **BF16))
    assert memory.device - memory.buckets == pytest.approx(bytes_a_parameter * parameters)
    assert memory.host == 0


def test_offloading_moves_states_to_the_host() -> None:
    parameters = 10_000
    kept, moved = (state_memory(parameters, resolved_run(name, **BF16)) for name in ("zero2", "zero2_offload"))
    assert moved.host == moved.optimizer == 12 * parameters
    assert kept.device - moved.device == 12 * parameters
    everything = state_memory(parameters, resolved_run("zero3_offload", **BF16))
    assert everything.host == 14 * parameters
    nowhere = {"stage": 2, "offload_optimizer": {"device": "none"}}
    assert state_memory(parameters, resolved_run("zero2", zero_optimization=nowhere)).host == 0


def test_deepspeeds_buckets_are_whole_on_a_gpu() -> None:
    assert state_memory(10_000, resolved_run("zero0")).buckets == 0
    assert state_memory(10_000, resolved_run("zero2")).buckets == 500_000_000 * 4
    small_buckets = {"stage": 2, "reduce_bucket_size": 1000, "overlap_comm": True}
    assert state_memory(10_000, resolved_run("zero2", zero_optimization=small_buckets)).buckets == 2 * 1000 * 4
    assert state_memory(10_000, resolved_run("zero2", device="cpu")).buckets == 10_000 * 4


@pytest.mark.parametrize(("stage", "half"), [(0, False), (1, True), (2, False), (3, True)])
def test_checkpoints_are_as_large_as_foreseen(data: Path, tmp_path: Path, stage: int, half: bool) -> None:
    file = tmp_path / "mine.json"
    file.write_text(f'{{"zero_optimization": {{"stage": {stage}}}, "bf16": {{"enabled": {str(half).lower()}}}}}')
    pretrain(small(data, tmp_path / "run", steps=1, ds_config=str(file)))
    checkpoint = latest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    written = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    weights = (checkpoint / "weights.safetensors").stat().st_size // 4
    assert checkpoint_bytes(weights) == pytest.approx(written, rel=0.01)
