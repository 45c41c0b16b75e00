"""Reading and writing the files of an offload to a drive, in the place of DeepSpeed's compiled async_io.

async_io looks at no result: a full drive, a broken one, or a read into memory that is not aligned for direct I/O
(gradients often are not) leaves the old values there, and training goes on with them. It also needs libaio and a
compiler, minutes at its first use, and a file system with direct I/O. This has its interface, and raises.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from coma.errors import ComaError

_CHUNK_BYTES = 16 << 20
_THREADS = 8
_SWAPPERS = ("partitioned_optimizer_swapper", "pipelined_optimizer_swapper")


class DriveFiles:
    """What DeepSpeed calls an `aio_handle`; the tuning that it is made with is of no use here."""

    _buffers: ClassVar[dict[int, Tensor]] = {}
    """Handed out and not given back, by address: of all handles together, as DeepSpeed's are."""

    def __init__(self, **_: Any) -> None:
        """Start no thread before it is needed."""
        self._threads = ThreadPoolExecutor(_THREADS, "drive")
        self._under_way: list[list[Future[None]]] = []

    def async_pread(self, buffer: Tensor, path: str, offset: int) -> int:
        """Begin to fill a tensor from a file; 0."""
        return self._begin(_read, buffer, path, offset)

    def async_pwrite(self, buffer: Tensor, path: str, offset: int) -> int:
        """Begin to write a tensor to a file; 0."""
        return self._begin(_write, buffer, path, offset)

    def _begin(
        self, move: Callable[[memoryview, str, int], None], buffer: Tensor, path: str, offset: int
    ) -> int:
        content = buffer.detach().view(torch.uint8).numpy().data
        self._under_way.append(
            [
                self._threads.submit(move, content[start : start + _CHUNK_BYTES], path, offset + start)
                for start in range(0, len(content), _CHUNK_BYTES)
            ]
        )
        return 0

    def wait(self) -> int:
        """End what was begun; return of how many tensors that was.

        Raises:
            ComaError: one of them could not be read or written.
        """
        begun, self._under_way = self._under_way, []
        for part in (part for parts in begun for part in parts):
            part.result()
        return len(begun)

    def new_cpu_locked_tensor(self, count: int, like: Tensor) -> Tensor:
        """Return memory for so many elements, page-locked where there is a GPU."""
        buffer = torch.empty(count, dtype=like.dtype, pin_memory=torch.cuda.is_available())
        self._buffers[buffer.data_ptr()] = buffer
        return buffer

    def free_cpu_locked_tensor(self, buffer: Tensor) -> bool:
        """Take it back; False if it is not from here."""
        return self._buffers.pop(buffer.data_ptr(), None) is not None

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in memory from here."""
        return tensor.untyped_storage().data_ptr() in self._buffers


def _read(content: memoryview, path: str, offset: int) -> None:
    with told(path), opened(path, os.O_RDONLY) as descriptor:
        while len(content):
            if not (count := os.preadv(descriptor, [content], offset)):
                raise OSError(errno.ENODATA, "")
            content, offset = content[count:], offset + count


def _write(content: memoryview, path: str, offset: int) -> None:
    with told(path), opened(path, os.O_WRONLY | os.O_CREAT) as descriptor:
        while len(content):
            count = os.pwrite(descriptor, content, offset)
            content, offset = content[count:], offset + count


@contextmanager
def opened(path: str | Path, flags: int) -> Iterator[int]:
    """Open a file or folder for a while."""
    descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def told(path: str | Path) -> Iterator[None]:
    """Make of a system's error one that says what to do. Raises ComaError."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise ComaError(
            f"the offload to {path} failed ({reason}): see to the drive, or offload to another; "
            "the same command goes on from the last checkpoint"
        ) from None


@contextmanager
def in_place_of_async_io() -> Iterator[None]:
    """Let what DeepSpeed makes meanwhile use `DriveFiles`."""
    modules = [import_module(f"deepspeed.runtime.swap_tensor.{name}") for name in _SWAPPERS]
    kept = [module.AsyncIOBuilder for module in modules]
    ours = SimpleNamespace(load=lambda verbose=False: SimpleNamespace(aio_handle=DriveFiles))
    try:
        for module in modules:
            module.AsyncIOBuilder = lambda: ours  # type: ignore[attr-defined]
        yield
    finally:
        for module, builder in zip(modules, kept, strict=True):
            module.AsyncIOBuilder = builder  # type: ignore[attr-defined]
