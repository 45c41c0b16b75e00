"""torch's process group under DeepSpeed, made for a run and gone after it."""

from __future__ import annotations

import atexit
import contextlib
import logging
import sys
from collections.abc import Iterator

from coma.training.processes.stdout import quiet_stdout


@contextlib.contextmanager
def process_group(verbose: bool, *, alone: bool) -> Iterator[None]:
    """Make the process group for the length of a block, unless the caller has made one, which stays.

    Args:
        verbose: whether DeepSpeed may log what it does; otherwise its logger is quiet in the block.
        alone: whether this process is the only one.
    """
    import torch.distributed as dist

    with quiet_stdout():
        import deepspeed
        from deepspeed.utils import groups, logger
    level = logger.level
    if not verbose:
        logger.setLevel(logging.ERROR)
    for handler in logger.handlers:  # made for the stdout of its import
        if type(handler) is logging.StreamHandler:
            handler.stream = sys.stderr
    ours = not dist.is_initialized()
    used = not ours and groups._WORLD_GROUP is not None  # by an engine of the caller
    try:
        if ours:
            groups._release_process_group_references()  # to a group that the caller has destroyed
            # It would be compiled at the first start on a CPU: 20 s, and a hang on a stale lock. gloo works without it.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
            with quiet_stdout():
                deepspeed.init_distributed(auto_mpi_discovery=False, verbose=verbose)
        yield
    except BaseException:
        if ours and alone:
            _destroy()
        elif ours:  # the others may be gone: why this one ends is said first
            atexit.register(_destroy)
        raise
    finally:
        logger.setLevel(level)
        if not (ours or used):
            groups._release_process_group_references()  # to a group that the caller will destroy
    if ours:
        _destroy()


def _destroy() -> None:
    import deepspeed.comm as dist

    if dist.is_initialized():
        dist.destroy_process_group()  # DeepSpeed forgets its groups as well
