"""What a process can still get, within all limits around it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from coma.training.memory.available import _limits_at, machine_memory, process_memory

V2 = ("memory.max", "memory.current", "(?:in)?active_file")
MB = 1_000_000


def group(folder: Path, limit: object, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 9\ninactive_file {cached}\nactive_file 1\nslab 7\n")


def test_free_is_a_part_of_the_whole_and_shared_by_processes() -> None:
    memory = machine_memory()
    assert memory.free > 0
    assert memory.total > 100 * MB
    assert process_memory(1) - process_memory(4) > memory.free / 2  # what this one has freed is its own


def test_a_jobs_limit_counts_as_well_as_those_around_it(tmp_path: Path) -> None:
    group(tmp_path, "max", 5, 0)
    group(tmp_path / "job", 900, 500, 99)
    group(tmp_path / "job" / "step", 800, 300, 49)
    assert list(_limits_at(tmp_path, "/job/step", *V2)) == [(800, 250), (900, 400)]


def test_a_container_may_see_its_own_group_as_the_root(tmp_path: Path) -> None:
    group(tmp_path, 700, 300, 99)
    assert list(_limits_at(tmp_path, "/docker/0123", *V2)) == [(700, 200)]
    assert list(_limits_at(tmp_path / "absent", "/", *V2)) == []


LIMITED = """
import resource
from coma.training.memory.available import process_memory
resource.setrlimit(resource.RLIMIT_AS, (300_000_000, 300_000_000))
print(process_memory())
"""


def test_ulimit_counts() -> None:
    free = int(subprocess.check_output([sys.executable, "-c", LIMITED], text=True))
    assert 0 < free < 300 * MB


FREED = """
import torch
from coma.measure import keep_freed_memory
from coma.training.memory.available import _freed_and_kept
keep_freed_memory()
before = _freed_and_kept()
held = torch.ones(100_000_000)
during = _freed_and_kept()
del held
print(during - before, _freed_and_kept() - before)
"""


def test_what_was_freed_and_kept_can_be_had_again() -> None:
    """An earlier run in the same process takes nothing from the next."""
    during, after = map(int, subprocess.check_output([sys.executable, "-c", FREED], text=True).split())
    assert abs(during) < 50 * MB
    assert after > 350 * MB
