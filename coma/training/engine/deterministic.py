"""Deterministic kernels on a GPU, without which a resumed run would differ from the one that was never stopped."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import deterministic

logger = logging.getLogger(__name__)

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_REPEATABLE = (":4096:8", ":16:8")


def configure_cublas() -> None:
    """Set the variable without which torch refuses deterministic matrix products.

    It looks at it once, at the first matrix product of a process on a GPU.
    """
    if os.environ.get(_CUBLAS) not in _REPEATABLE:
        os.environ[_CUBLAS] = _REPEATABLE[0]


@contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Let torch choose kernels that compute the same bits each time, for the length of a block.

    On a GPU the backward passes of attention and of convolutions add up in the order in which threads finish, unless
    asked not to. An operation that has no such kernel raises RuntimeError, so nothing but the step is in the block.
    """
    if not _available():
        yield
        return
    with _mode():
        yield


@contextmanager
def _mode() -> Iterator[None]:
    settings: Any = deterministic
    mode, fill = torch.get_deterministic_debug_mode(), settings.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")
    settings.fill_uninitialized_memory = False  # a debugging aid that writes to memory twice
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        settings.fill_uninitialized_memory = fill


@functools.cache
def _available() -> bool:
    """Whether this process can have deterministic kernels; says so if not."""
    if not torch.cuda.is_available():
        return True
    configure_cublas()
    try:
        with _mode():
            torch.ones(2, 2, device="cuda").mm(torch.ones(2, 2, device="cuda"))
    except RuntimeError as error:
        if _CUBLAS not in str(error):
            raise
        logger.warning(
            "steps are not repeatable to the last bit: this process has used its GPU before; export %s=%s before",
            *(_CUBLAS, _REPEATABLE[0]),
        )
        return False
    return True
