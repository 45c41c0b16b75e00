"""Checks of the machine: cores, memory, limits, disk. Nothing heavy is imported."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

from coma.doctor.finding import Finding
from coma.training.memory.available import machine_memory

GB, MB = 1e9, 1e6
_LEAST_MEMORY, _LITTLE_MEMORY = 1 * GB, 4 * GB
_LEAST_DISK, _LITTLE_DISK = 1 * GB, 10 * GB
_SLOW_DISK_MB_PER_S = 20
_LITTLE_SHARED = 1 * GB
_FEW_FILES = 1024
_TRIAL_BYTES = 1 << 25
_CGROUP = Path("/sys/fs/cgroup")


def cores() -> Finding:
    """Check the cores this process may use, the threads it would start, and the load by others."""
    seen = len(os.sched_getaffinity(0))
    allowed = min(seen, _quota() or seen)
    threads = os.environ.get("OMP_NUM_THREADS")
    text = f"{allowed:g}, OMP_NUM_THREADS {threads or 'not set'}"
    wanted = int(threads) if threads and threads.isdigit() else seen
    if wanted > max(1, allowed):
        advice = f"export OMP_NUM_THREADS={max(1, int(allowed))}: more threads than cores wait for each other"
        return Finding("warning", f"{text}: {wanted} threads on {allowed:g} cores", advice)
    load = os.getloadavg()[0]
    if load > 1.5 * (os.cpu_count() or 1):
        advice = "see who computes here (top): until they are done, steps take longer than need be"
        return Finding("warning", f"{text}; load average {load:.1f}", advice)
    return Finding("ok", text)


def _quota() -> float | None:
    """Return the number of cores whose time a container may use, None without a limit."""
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or "max"
        return None


def memory() -> Finding:
    """Check the free memory, of the machine and within the container's limit."""
    found = machine_memory()
    free, total = found.free, found.total
    text = f"{free / GB:.1f} of {total / GB:.1f} GB free"
    advice = "end other programs, or raise the container's limit; coma plan says what a run takes"
    if free < _LITTLE_MEMORY:
        return Finding("problem" if free < _LEAST_MEMORY else "warning", text, advice)
    return Finding("ok", text)


def shared_memory() -> Finding:
    """Check the size of /dev/shm, through which NCCL's processes on one machine communicate."""
    try:
        total = shutil.disk_usage("/dev/shm").total
    except OSError as error:
        return Finding("warning", f"none: {error.strerror}", "mount it: mount -t tmpfs tmpfs /dev/shm")
    gpus = len([path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()])
    if gpus > 1 and total < _LITTLE_SHARED:
        advice = "give the container more: docker run --shm-size=8g"
        return Finding("warning", f"{total / MB:,.0f} MB for {gpus} GPUs", advice)
    return Finding("ok", f"{total / GB:.2f} GB")


def open_files() -> Finding:
    """Check how many files and connections may be open at a time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _FEW_FILES:
        return Finding("warning", f"{soft:,} at most", f"ulimit -n {min(65_536, hard) if hard > 0 else 65_536}")
    return Finding("ok", "no limit" if soft < 0 else f"{soft:,} at most")


def disk() -> Finding:
    """Check room and speed of the disk under the current folder, where runs go, by an unnamed temporary file."""
    free = shutil.disk_usage(Path.cwd()).free
    room = f"{free / GB:.1f} GB free here"
    if free < _LEAST_DISK:
        return Finding("problem", room, "make room, or go elsewhere: coma plan says what a run takes")
    data = os.urandom(_TRIAL_BYTES)
    try:
        with tempfile.TemporaryFile(dir=Path.cwd(), buffering=0) as file:
            began_s = time.perf_counter()
            file.write(data)
            os.fsync(file.fileno())
            write_s = time.perf_counter() - began_s
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # read from the disk, not from memory
            file.seek(0)
            began_s = time.perf_counter()
            whole = file.read() == data
            read_s = time.perf_counter() - began_s
    except OSError as error:
        return Finding("problem", f"{room}, but no file can be written: {error.strerror}", "go to a folder of your own")
    if not whole:
        return Finding("problem", f"{room}, but it gives back other bytes than were written", "do not use this disk")
    writing, reading = (_TRIAL_BYTES / MB / seconds for seconds in (write_s, read_s))
    text = f"{room}, writes {writing:,.0f} MB/s, reads {reading:,.0f} MB/s"
    if min(writing, reading) < _SLOW_DISK_MB_PER_S:
        return Finding("warning", text, "run from a faster disk: checkpoints and shards wait for this one")
    if free < _LITTLE_DISK:
        return Finding("warning", text, "make room: coma plan says what a run takes")
    return Finding("ok", text)
