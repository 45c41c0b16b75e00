"""NVMe offload of the optimizer state (ZeRO-Infinity, arXiv 2104.07857): swap files, and access to what is in them.

DeepSpeed gives the files of every run the same names, reads back what it finds and deletes nothing. Here a process
has a folder of its own, locked while it lives, and sweeps up those of processes that were killed.

DeepSpeed's compiled async_io looks at no result: a full drive, a broken one, or a read into memory that is not
aligned for direct I/O (gradients often are not) leaves the old values there, and training goes on with them. It also
needs libaio and a compiler, minutes at its first use, and a file system with direct I/O. `SwapFiles` has its
interface, and raises.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from coma.errors import ComaError, UsageError
from coma.shards.locks import take_lock
from coma.training.config.ds_config import DeepSpeedConfig

_PREFIX = f"coma-swap-{socket.gethostname()}_"
"""Holds the host's name: on a shared file system a host may not see the locks of another. No name has an underscore."""
_CHUNK_BYTES = 16 << 20
_THREADS = 8
_SWAPPERS = ("partitioned_optimizer_swapper", "pipelined_optimizer_swapper")


def check_nvme_folder(config: DeepSpeedConfig) -> None:
    """Check that the folder of an NVMe offload, if there is one, exists and is writable.

    Raises:
        UsageError: it is not.
    """
    folder = _parent(config)
    if config.optimizer_device == "nvme" and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise UsageError(
            f"{folder} is no folder that can be written to: give 'zero_optimization.offload_optimizer.nvme_path' in "
            f"{config.source} one on a local drive (without the key it is $TMPDIR, or /tmp)"
        )


def _parent(config: DeepSpeedConfig) -> Path:
    return Path(config.nvme_path or tempfile.gettempdir())


class SwapFolder:
    """This process's own folder for the files of an NVMe offload; without such an offload there is none.

    Args:
        config: the configuration; swap folders that killed processes left in its `nvme_path` are removed.

    Raises:
        ComaError: no folder can be made in `nvme_path`.
    """

    def __init__(self, config: DeepSpeedConfig) -> None:
        """Make and lock the folder."""
        self.path: Path | None = None
        self.config = config
        """The configuration with this folder as its `nvme_path`."""
        if config.optimizer_device != "nvme":
            return
        parent = _parent(config)
        with as_coma_error(parent), _opened(parent, os.O_RDONLY) as lock:
            take_lock(lock, wait=True)
            _sweep(parent)
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._descriptor = os.open(self.path, os.O_RDONLY)
            take_lock(self._descriptor, wait=True)
        self.config = replace(config, nvme_path=str(self.path))

    def sync(self) -> None:
        """Flush the swap files from the system's cache to the drive.

        Raises:
            ComaError: the drive fails.
        """
        for path in self.path.rglob("*.swp") if self.path else ():
            with as_coma_error(path), _opened(path, os.O_RDONLY) as descriptor:
                os.fsync(descriptor)

    def remove(self) -> None:
        """Delete the folder and its files."""
        if self.path is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._descriptor)
            self.path = None


def _sweep(parent: Path) -> None:
    """Delete the swap folders that no living process holds."""
    for folder in parent.glob(f"{_PREFIX}*"):
        # It may be in use, or another user's.
        with contextlib.suppress(OSError), _opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            if take_lock(descriptor):
                shutil.rmtree(folder, ignore_errors=True)


class SwapFiles:
    """Reader and writer of swap files with the interface of DeepSpeed's `aio_handle`.

    The tuning options that DeepSpeed passes are ignored.
    """

    _buffers: ClassVar[dict[int, Tensor]] = {}
    """Pinned buffers in use, by address: of all handles together, as DeepSpeed's are."""

    def __init__(self, **_: Any) -> None:
        """Start no thread before it is needed."""
        self._threads = ThreadPoolExecutor(_THREADS, "nvme")
        self._pending: list[list[Future[None]]] = []

    def async_pread(self, buffer: Tensor, path: str, offset: int) -> int:
        """Start to fill a tensor from a file at a byte offset; returns 0."""
        return self._start(_read, buffer, path, offset)

    def async_pwrite(self, buffer: Tensor, path: str, offset: int) -> int:
        """Start to write a tensor to a file at a byte offset; returns 0."""
        return self._start(_write, buffer, path, offset)

    def _start(self, transfer: Callable[[memoryview, str, int], None], buffer: Tensor, path: str, offset: int) -> int:
        content = buffer.detach().view(torch.uint8).numpy().data
        self._pending.append(
            [
                self._threads.submit(transfer, content[start : start + _CHUNK_BYTES], path, offset + start)
                for start in range(0, len(content), _CHUNK_BYTES)
            ]
        )
        return 0

    def wait(self) -> int:
        """Wait for all transfers that were started; return the number of tensors.

        Raises:
            ComaError: a tensor could not be read or written.
        """
        pending, self._pending = self._pending, []
        for chunk in (chunk for chunks in pending for chunk in chunks):
            chunk.result()
        return len(pending)

    def new_cpu_locked_tensor(self, count: int, like: Tensor) -> Tensor:
        """Return a buffer of `count` elements, page-locked where there is a GPU."""
        buffer = torch.empty(count, dtype=like.dtype, pin_memory=torch.cuda.is_available())
        self._buffers[buffer.data_ptr()] = buffer
        return buffer

    def free_cpu_locked_tensor(self, buffer: Tensor) -> bool:
        """Free a buffer of `new_cpu_locked_tensor`; False if it is none."""
        return self._buffers.pop(buffer.data_ptr(), None) is not None

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in a buffer of `new_cpu_locked_tensor`."""
        return tensor.untyped_storage().data_ptr() in self._buffers


def _read(content: memoryview, path: str, offset: int) -> None:
    with as_coma_error(path), _opened(path, os.O_RDONLY) as descriptor:
        while len(content):
            if not (count := os.preadv(descriptor, [content], offset)):
                raise OSError(errno.ENODATA, "")
            content, offset = content[count:], offset + count


def _write(content: memoryview, path: str, offset: int) -> None:
    with as_coma_error(path), _opened(path, os.O_WRONLY | os.O_CREAT) as descriptor:
        while len(content):
            count = os.pwrite(descriptor, content, offset)
            content, offset = content[count:], offset + count


@contextlib.contextmanager
def _opened(path: str | Path, flags: int) -> Iterator[int]:
    """Open the descriptor of a file or folder for the length of a block."""
    descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def as_coma_error(path: str | Path) -> Iterator[None]:
    """Raise ComaError, which says what to do, in place of an OSError."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise ComaError(
            f"the offload to {path} failed ({reason}): see to the drive, or offload to another; "
            "the same command resumes from the last checkpoint"
        ) from None


@contextlib.contextmanager
def replaced_async_io() -> Iterator[None]:
    """Make DeepSpeed use `SwapFiles` for the engines that are made in a block."""
    modules = [import_module(f"deepspeed.runtime.swap_tensor.{name}") for name in _SWAPPERS]
    originals = [module.AsyncIOBuilder for module in modules]
    builder = SimpleNamespace(load=lambda verbose=False: SimpleNamespace(aio_handle=SwapFiles))
    try:
        for module in modules:
            module.AsyncIOBuilder = lambda: builder  # type: ignore[attr-defined]
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.AsyncIOBuilder = original  # type: ignore[attr-defined]


@contextlib.contextmanager
def in_memory(engine: Any, flat: Tensor, *, changed: bool = False) -> Iterator[None]:
    """Hold a tensor of the optimizer and its state in memory for a block, if they are offloaded to NVMe.

    Outside of it such tensors are empty. One tensor at a time; `changed` writes it back.
    """
    optimizer = engine.optimizer
    index = _index_on_nvme(optimizer, flat)
    if index is None:
        yield
        return
    optimizer._optimizer_states_and_gradient_swap_in(index)
    yield  # after an error the process ends anyway
    if changed:
        optimizer.optimizer_swapper.swap_out_optimizer_state(parameter=flat, async_swap=False)
        flat.grad = None
    else:
        optimizer._release_swap_buffers(index)


def _index_on_nvme(optimizer: Any, flat: Tensor) -> int | None:
    """Return the index of the parameter group that `flat` holds if it is offloaded to NVMe, else None."""
    if not getattr(optimizer, "swap_optimizer", False):
        return None
    index = next(i for i, other in enumerate(optimizer.fp32_partitioned_groups_flat) if other is flat)
    return index if optimizer._swappable_optimizer_subgroup(index) else None


def gather_from_nvme(engine: Any) -> dict[str, Tensor]:
    """Return the float32 weights that are offloaded to NVMe, by name, on the CPU; collective.

    Each file is read once, where DeepSpeed's own function reads a whole group for each parameter. On all ranks but
    0 the tensors are empty.
    """
    optimizer = engine.optimizer
    weights: dict[str, Tensor] = {}
    if not getattr(optimizer, "swap_optimizer", False):
        return weights
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    for flat, parameters in zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups, strict=True):
        with in_memory(engine, flat):
            for parameter in parameters:
                _, offset, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
                whole = optimizer._fp32_state_allgather(parameter, flat.narrow(0, offset, count))
                kept = whole if engine.global_rank == 0 else whole.new_empty(0)
                weights[names[id(parameter)]] = kept.detach().to("cpu", copy=True)
    return weights
