"""Freed memory stays with the process, so that the kernel has not to zero its pages again."""

import subprocess
import sys

FAULTS = """
import resource, torch
from coma.measure import keep_freed_memory
if {keep}:
    keep_freed_memory()
for turn in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(1 << 24) for _ in range(4)]  # of 64 MiB
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_pages_that_were_touched_once_are_not_touched_anew() -> None:
    faults = {
        keep: int(subprocess.check_output([sys.executable, "-c", FAULTS.format(keep=keep)], text=True))
        for keep in (False, True)
    }
    assert faults[True] < 100 < faults[False]  # 65,536 pages a turn, or fewer but huge ones
