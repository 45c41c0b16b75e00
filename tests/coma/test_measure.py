"""Activation memory is what the profiler sees; freed memory stays with the process."""

import subprocess
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from coma.measure import kept_bytes
from coma.model.build import build

FAULTS = """
import resource, torch
from coma.measure import give_back_freed_memory, keep_freed_memory
if {keep}:
    keep_freed_memory()
for turn in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(1 << 24) for _ in range(4)]  # of 64 MiB
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
pages = lambda: int(open("/proc/self/statm").read().split()[1])
kept = pages()
give_back_freed_memory()
print(kept - pages())
"""


@pytest.mark.parametrize("stages", [(), (1, 2), None])
def test_kept_bytes_are_what_is_allocated_after_the_forward_pass(stages: tuple[int, ...] | None) -> None:
    """By the profiler's count of every allocation that is not freed while the loss lives."""
    network = build("dyvit_nano", image_size=96)
    network.checkpoint_stages(stages)
    images, units = torch.randn(4, 3, 96, 96), torch.rand(4, 9).argsort(dim=1)
    network(images, units).backward()  # positions are made once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss = network(images, units)
    allocated = sum(event.self_cpu_memory_usage for event in profiler.events())
    kept = kept_bytes(network, lambda: network(images, units))
    assert kept == pytest.approx(allocated, rel=0.03)
    assert loss.requires_grad


@pytest.mark.slow
def test_pages_that_were_touched_once_are_not_touched_anew() -> None:
    (faults, _), (faults_keeping, given_back) = (
        map(int, subprocess.check_output([sys.executable, "-c", FAULTS.format(keep=keep)], text=True).split())
        for keep in (False, True)
    )
    assert faults_keeping < 100 < faults  # 65,536 pages a turn, or fewer but huge ones
    assert given_back > 60_000  # of 4 KiB: what the last turn had
