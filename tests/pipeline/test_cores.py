"""On how many cores a rank decodes, by what its launcher says."""

import pytest

from coma.pipeline.arguments import share_of_cores


@pytest.mark.parametrize(
    ("told", "usable", "cores"),
    [
        ({}, 16, 1),
        ({"LOCAL_WORLD_SIZE": "4"}, 16, 4),
        ({"LOCAL_SIZE": "8"}, 16, 2),
        (
            {"SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"},
            16,
            16,
        ),  # of 64: bound to the task
        ({"SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, 64, 8),
        ({"SLURM_STEP_NUM_TASKS": "1"}, 32, 2),  # a launcher inside a step of one task
        ({"LOCAL_WORLD_SIZE": "64"}, 16, 1),
    ],
)
def test_a_rank_decodes_on_its_share_of_its_machines_cores(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], usable: int, cores: int
) -> None:
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(usable)))
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert share_of_cores(16) == cores
