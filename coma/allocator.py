"""On a CPU, what one training step frees is what the next one needs.

glibc gives blocks of more than 32 MiB back to the kernel at once, which then has to zero every page of them again: a
sixth of a dyvit_base's step of 8 images (docs/experiments.md).
"""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for good; nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)  # no block of its own mapping
        mallopt(_M_TRIM_THRESHOLD, -1)  # never give back the top of the heap
