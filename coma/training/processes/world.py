"""Process group of a run: rank and world size, collective operations, errors that end all ranks.

A process is either alone, or was started by a launcher (`coma pretrain --devices`, deepspeed, torchrun, srun)
whose environment gives its rank and the world size.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from coma.errors import ComaError, UsageError, is_out_of_memory
from coma.training.processes.child import exit_code
from coma.training.processes.gpus import refuse_shared_gpus
from coma.training.processes.group import process_group
from coma.training.processes.stdout import quiet_stdout

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOST_PEER = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SETTINGS = (
    *("TORCH_CPP_LOG_LEVEL", "DS_ACCELERATOR", "CUBLAS_WORKSPACE_CONFIG"),
    *("PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR"),
)
"""Other variables that a run or its libraries set, and that are put back."""


@dataclass(frozen=True)
class Place:
    """Rank of this process, world size, and the address at which rank 0 listens."""

    rank: int
    local_rank: int
    world_size: int
    master_address: str
    master_port: int

    def environment(self) -> dict[str, str]:
        """Return the variables that torch and DeepSpeed read."""
        values = (self.rank, self.local_rank, self.world_size, self.master_address, self.master_port)
        return dict(zip(_VARIABLES, map(str, values), strict=True))


def find_place(environment: Mapping[str, str]) -> Place | None:
    """Return the place that a launcher gave this process, None if there was no launcher.

    Raises:
        UsageError: the environment has only a part of the variables.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        missing = [name for name in _VARIABLES if name not in environment and name != "LOCAL_RANK"]
        if missing:
            raise UsageError(f"RANK and WORLD_SIZE are set but {missing[0]} is not: unset them, or use torchrun")
        return Place(
            rank=int(environment["RANK"]),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            world_size=int(environment["WORLD_SIZE"]),
            master_address=environment["MASTER_ADDR"],
            master_port=int(environment["MASTER_PORT"]),
        )
    # Only srun's steps have this variable; a batch script or salloc's shell also has SLURM_PROCID and is alone.
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        job = int(environment.get("SLURM_JOB_ID", "0"))
        return Place(
            rank=int(environment["SLURM_PROCID"]),
            local_rank=int(environment["SLURM_LOCALID"]),
            world_size=int(environment["SLURM_STEP_NUM_TASKS"]),
            master_address=environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"]),
            master_port=int(environment.get("MASTER_PORT", 20_000 + job % 20_000)),
        )
    return None


def first_host(nodelist: str) -> str:
    """Return the first host of Slurm's notation: `gpu[003-007,012],login1` gives gpu003."""
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodelist)[0])


def free_port() -> int:
    """Return a TCP port that is not in use now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class World:
    """The process group of the run, as one of its processes sees it.

    Methods that are called "collective" must be called on all ranks, in the same order.
    """

    def __init__(self, place: Place, device: torch.device) -> None:
        self.rank = place.rank
        self.size = place.world_size
        self.device = device

    @property
    def is_rank0(self) -> bool:
        """Whether this is rank 0, which logs and writes files."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums of the ranks' values, in float64; collective."""
        import torch
        import torch.distributed as dist

        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.size > 1:
            dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def sum_on_rank0(self, tensor: Tensor) -> None:
        """Add up the ranks' tensors on rank 0, in place; those of other ranks are undefined after it; collective."""
        import torch.distributed as dist

        if self.size > 1:
            dist.reduce(tensor, dst=0)

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, which must be picklable, on every rank; slow; collective."""
        import torch.distributed as dist

        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def broadcast(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return rank 0's tensors, which are on the CPU, on every rank; the others' are not used; collective."""
        import torch
        import torch.distributed as dist

        if self.size == 1:
            return dict(tensors)
        described = self.gather([(name, value.shape, value.dtype) for name, value in tensors.items()])[0]
        received: dict[str, Tensor] = {}
        for name, shape, dtype in described:
            value = tensors[name] if self.is_rank0 else torch.empty(shape, dtype=dtype)
            moved = value.to(self.device).contiguous()
            dist.broadcast(moved, src=0)
            received[name] = value if self.is_rank0 else moved.cpu()
        return received

    def run_on_rank0(self, act: Callable[[], T]) -> T:
        """Call `act` on rank 0 and return its result on every rank; collective.

        An error of rank 0, of whatever kind, ends all ranks: rank 0 raises it, the others raise SystemExit with its
        exit code.
        """
        import torch.distributed as dist

        if self.size == 1:
            return act()
        outcome: list[tuple[T | None, int | None]] = [(None, 1)]
        error: BaseException | None = None
        if self.is_rank0:
            try:
                outcome = [(act(), None)]
            except BaseException as raised:
                error, outcome = raised, [(None, exit_code(raised))]
        dist.broadcast_object_list(outcome, src=0, device=self.device)
        value, code = outcome[0]
        if error is not None:
            raise error
        if code is not None:
            raise SystemExit(code)
        return value  # type: ignore[return-value]

    def run_on_all(self, act: Callable[[], T]) -> T:
        """Call `act` on every rank and return its own result, or end all ranks if one fails; collective.

        The first rank that failed raises its error, a ComaError named if it is not rank 0; the others raise SystemExit
        with the same exit code.
        """
        value: T | None = None
        error: BaseException | None = None
        try:
            value = act()
        except BaseException as raised:
            error = raised
        codes = self.gather(None if error is None else exit_code(error))
        failed = [(rank, code) for rank, code in enumerate(codes) if code is not None]
        if not failed:
            return value  # type: ignore[return-value]
        first, first_code = failed[0]
        if error is None or self.rank != first:
            raise SystemExit(first_code)
        if first > 0 and isinstance(error, ComaError):
            raise type(error)(f"rank {first} on {socket.gethostname()}: {error}") from error
        raise error

    @contextlib.contextmanager
    def raise_on_rank0(self) -> Iterator[None]:
        """Raise an error that all ranks meet alike on rank 0 only; the others raise SystemExit with its exit code.

        Not collective: it must surround code that fails on all ranks or on none.
        """
        try:
            yield
        except ComaError as error:
            if self.is_rank0:
                raise
            raise SystemExit(error.exit_code) from None


@contextlib.contextmanager
def joined(place: Place | None) -> Iterator[World]:
    """Join the group that `place` describes, or make one of this process alone, for the length of a block.

    Its beginning is quiet on stdout, which DeepSpeed, gloo and NCCL write to; in the block stdout is the caller's.

    Raises:
        ComaError: out of memory, another process was lost, or a disk is full.
    """
    place = place or Place(0, 0, 1, "127.0.0.1", free_port())
    verbose = logger.isEnabledFor(logging.DEBUG)
    with _environment(place.environment(), _SETTINGS):
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "INFO" if verbose else "ERROR")
        from coma.training.processes.torch_state import (
            own_torch_state,  # torch looks at the environment when it is imported
        )

        with own_torch_state(), warnings.catch_warnings():
            if not verbose:
                warnings.simplefilter("ignore")
            with quiet_stdout():
                device = _own_device(place)
                if device.type == "cuda" and place.world_size > 1:
                    _refuse_shared_gpus(place, device)
            try:
                with process_group(verbose, alone=place.world_size == 1):
                    yield World(place, device)
            except ComaError:
                raise
            except Exception as error:
                known = _as_coma_error(error, place)
                if known is None:
                    raise
                logger.debug("rank %d failed", place.rank, exc_info=error)
                raise known from error


def _as_coma_error(error: Exception, place: Place) -> ComaError | None:
    """Return the line that a user should get for an error in a process group; None for a bug in a process alone."""
    here = f"rank {place.rank} on {socket.gethostname()}"
    if is_out_of_memory(error):
        return ComaError(
            f"{here} is out of memory: give a smaller --micro-batch-size (auto finds one), --grad-checkpointing all or "
            "more devices; coma plan says what fits"
        )
    if isinstance(error, OSError) and error.errno in _FULL:
        return ComaError(
            f"{here} could not write {error.filename or 'to the run folder'}: {os.strerror(error.errno or 0).lower()}; "
            "make room, and the same command resumes from the last checkpoint"
        )
    if place.world_size == 1:
        return None
    if isinstance(error, RuntimeError) and _LOST_PEER.search(str(error)):
        return ComaError(
            f"rank {place.rank} lost another process of the run, which reported why if it could; "
            "the same command resumes from the last checkpoint"
        )
    reason = " ".join(str(error).split())[:300]
    return ComaError(f"{here} failed: {type(error).__name__}{reason and f': {reason}'} (coma -v shows where)")


def _own_device(place: Place) -> torch.device:
    """Choose this process's device, for torch and for DeepSpeed, and return it."""
    import torch

    from coma.training.engine.deterministic import configure_cublas

    cuda = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
    if not cuda:
        return torch.device("cpu")
    if place.world_size > 1:  # alone: the GPU that the caller has chosen
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    # DeepSpeed uses the device of this number; a launcher may let each process see its own only.
    os.environ["LOCAL_RANK"] = str(torch.cuda.current_device())
    configure_cublas()
    return torch.device("cuda", torch.cuda.current_device())


def _refuse_shared_gpus(place: Place, device: torch.device) -> None:
    import torch

    identity = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    if identity is not None:
        refuse_shared_gpus(place.rank, place.world_size, f"{socket.gethostname()} {identity}")


@contextlib.contextmanager
def _environment(variables: Mapping[str, str], others: Sequence[str]) -> Iterator[None]:
    """Set variables for the length of a block, and put them and `others` back after it."""
    before = {name: os.environ.get(name) for name in (*variables, *others)}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
