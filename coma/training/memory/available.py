"""Memory that a process can get: of its GPU, or of the machine within the limits of containers, jobs and `ulimit -v`.

Torch is imported for a GPU only, and nothing else that is heavy.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CGROUP = Path("/sys/fs/cgroup")
_KB = 1024


@dataclass(frozen=True)
class Memory:
    """Bytes of a machine's or a GPU's memory."""

    free: int
    """What programs can still get, caches included."""
    total: int
    swap: int
    """Free swap beside it."""


def machine_memory() -> Memory:
    """Return the memory of this machine, or that of the tightest limit of a container or job around this process."""
    info = {name: _KB * int(kilobytes) for name, kilobytes in _numbers(Path("/proc/meminfo"), r"(\w+):\s+(\d+) kB")}
    memory = Memory(info["MemAvailable"], info["MemTotal"], info.get("SwapFree", 0))
    for limit, used in _limits():
        if limit < info["MemTotal"]:
            memory = Memory(min(memory.free, max(0, limit - used)), min(memory.total, limit), memory.swap)
    return memory


def process_memory(processes: int = 1) -> int:
    """Return the bytes that each of so many processes on this machine, of which this is one, can still get.

    What it has freed and the C library has kept (`coma.measure.keep_freed_memory`) is among them.
    """
    machine = machine_memory()
    share = (machine.free + machine.swap) // processes
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        share = min(share, max(0, most - pages * os.sysconf("SC_PAGE_SIZE")))
    return share + _freed_and_kept()


def gpu_memory(device: torch.device) -> int:
    """Return the bytes of a GPU's memory that this process can still get, its own cache included."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _limits() -> Iterator[tuple[int, int]]:
    """Yield (limit, bytes in use that are no cache of files) of each control group that this process is in."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            yield from _limits_at(_CGROUP, place, "memory.max", "memory.current", "(?:in)?active_file")
        elif "memory" in controllers.split(","):
            yield from _limits_at(
                _CGROUP / "memory",
                place,
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_(?:in)?active_file",
            )


def _limits_at(root: Path, place: str, limit: str, used: str, cached: str) -> Iterator[tuple[int, int]]:
    """Yield those of a group and the groups around it; a container may see its own as the root."""
    inner = root / place.lstrip("/")
    for folder in [inner, *inner.parents]:
        if not folder.is_relative_to(root):
            return
        try:
            cache = sum(number for _, number in _numbers(folder / "memory.stat", rf"^({cached}) (\d+)$"))
            yield int((folder / limit).read_text()), int((folder / used).read_text()) - cache
        except (OSError, ValueError):  # no such group here, or "max"
            continue


def _numbers(path: Path, pattern: str) -> list[tuple[str, int]]:
    return [(name, int(number)) for name, number in re.findall(pattern, path.read_text(), re.MULTILINE)]


class _MallocInfo(ctypes.Structure):
    """glibc's mallinfo2; `fordblks` are the bytes of free blocks."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _freed_and_kept() -> int:
    """Return the bytes that this process has freed and can use again; 0 where the C library does not say.

    Free blocks may have pages that were never touched, so that no more than the process's resident memory counts.
    """
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = _MallocInfo
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return min(int(mallinfo2().fordblks), resident_pages * os.sysconf("SC_PAGE_SIZE"))
