"""The processes of a run as one group: who am I, who speaks, what have all of us seen.

A process is either alone, or was started by a launcher (`coma pretrain --devices`, deepspeed, torchrun, srun)
whose environment says which of how many it is.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import re
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from coma.errors import ComaError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOST_PEER = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """Which process of how many this is, and where rank 0 listens."""

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
        UsageError: the environment names a part of what is needed only.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        missing = [name for name in _VARIABLES if name not in environment and name != "LOCAL_RANK"]
        if missing:
            raise UsageError(
                f"RANK and WORLD_SIZE are set but {missing[0]} is not: unset them, or use torchrun"
            )
        return Place(
            rank=int(environment["RANK"]),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            world_size=int(environment["WORLD_SIZE"]),
            master_address=environment["MASTER_ADDR"],
            master_port=int(environment["MASTER_PORT"]),
        )
    # Only srun's steps have this one; a batch script or salloc's shell has SLURM_PROCID as well and is alone.
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
    """Return a TCP port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class World:
    """All processes of the run, from the inside of one of them."""

    def __init__(self, place: Place, device: torch.device) -> None:
        """Describe a group that is joined already."""
        self.rank = place.rank
        self.size = place.world_size
        self.device = device

    @property
    def leads(self) -> bool:
        """Whether this is rank 0: the one that logs and writes."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up the ranks' values, in float64."""
        import torch
        import torch.distributed as dist

        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.size > 1:
            dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def sum_on_lead(self, tensor: Tensor) -> None:
        """Add up the ranks' tensors on rank 0, in place; the others' are spent."""
        import torch.distributed as dist

        if self.size > 1:
            dist.reduce(tensor, dst=0)

    def gather(self, value: T) -> list[T]:
        """Return every rank's value on every rank; any picklable value, slow."""
        import torch.distributed as dist

        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.sum([0.0])

    def agree(self, decide: Callable[[], T]) -> T:
        """Let rank 0 decide and every rank return what it decided, or end with its error.

        What rank 0 raises ends all ranks: it is said once, the others leave quietly with the same exit code.
        """
        import torch.distributed as dist

        if self.size == 1:
            return decide()
        outcome: list[tuple[T | None, int | None]] = [(None, 1)]
        error: ComaError | None = None
        if self.leads:
            try:
                outcome = [(decide(), None)]
            except ComaError as raised:
                error, outcome = raised, [(None, raised.exit_code)]
        dist.broadcast_object_list(outcome, src=0, device=self.device)
        value, exit_code = outcome[0]
        if error is not None:
            raise error
        if exit_code is not None:
            raise SystemExit(exit_code)
        return value  # type: ignore[return-value]

    def together(self, act: Callable[[], T]) -> T:
        """Let every rank do its part and return what came of it, or end all if one fails; collective.

        The first rank that failed raises its error, with its name if it is not rank 0; the others leave quietly
        with the same exit code.
        """
        value: T | None = None
        error: ComaError | None = None
        try:
            value = act()
        except ComaError as raised:
            error = raised
        codes = self.gather(None if error is None else error.exit_code)
        failed = [(rank, code) for rank, code in enumerate(codes) if code is not None]
        if not failed:
            return value  # type: ignore[return-value]
        first, exit_code = failed[0]
        if error is None or self.rank != first:
            raise SystemExit(exit_code)
        if first > 0:
            raise type(error)(f"rank {first} on {socket.gethostname()}: {error}") from error
        raise error

    @contextlib.contextmanager
    def said_once(self) -> Iterator[None]:
        """Around what every rank does alike: its error is rank 0's to tell, the others leave quietly."""
        try:
            yield
        except ComaError as error:
            if self.leads:
                raise
            raise SystemExit(error.exit_code) from None


@contextlib.contextmanager
def joined(place: Place | None) -> Iterator[World]:
    """Join the group that `place` describes, or make one of this process alone, for the length of a block.

    Inside it stdout is closed to DeepSpeed's, gloo's and NCCL's chatter, which would end up in a command's
    results.
    """
    place = place or Place(0, 0, 1, "127.0.0.1", free_port())
    verbose = logger.isEnabledFor(logging.DEBUG)
    with _environment(place.environment()), _without_stdout(sys.stderr.fileno() if verbose else None):
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "INFO" if verbose else "ERROR")
        import torch

        cuda = torch.cuda.is_available()
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
        if cuda:
            torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
            # DeepSpeed takes the device of this number; a launcher may show each process only its own.
            os.environ["LOCAL_RANK"] = str(torch.cuda.current_device())
        device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        with warnings.catch_warnings():
            if not verbose:
                warnings.simplefilter("ignore")
            _init_distributed(verbose)
            try:
                yield World(place, device)
            except torch.OutOfMemoryError as error:
                raise ComaError(
                    f"rank {place.rank} on {socket.gethostname()} ran out of its GPU's memory: give a smaller "
                    "--batch-size, more devices, or 'train_micro_batch_size_per_gpu' in a --ds-config (coma plan "
                    "says what fits)"
                ) from error
            except RuntimeError as error:
                if place.world_size > 1 and _LOST_PEER.search(str(error)):
                    raise ComaError(
                        f"rank {place.rank} lost another process of the run, which has said why if it could; "
                        "the same command goes on from the last checkpoint"
                    ) from error
                raise
            except OSError as error:
                if error.errno in _FULL:
                    raise ComaError(
                        f"rank {place.rank} on {socket.gethostname()} could not write "
                        f"{error.filename or 'to the run folder'}: {os.strerror(error.errno).lower()}; make room, "
                        "and the same command goes on from the last checkpoint"
                    ) from error
                raise


def _init_distributed(verbose: bool) -> None:
    import deepspeed
    import torch.distributed as dist
    from deepspeed.utils import logger as deepspeed_logger

    if not verbose:
        deepspeed_logger.setLevel(logging.ERROR)
    if dist.is_initialized():  # an earlier run in this process
        return
    # Compiled at the first start on a CPU: 20 s, and a hang on a stale lock. gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=verbose)
    atexit.register(_leave)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _without_stdout(instead: int | None) -> Iterator[None]:
    """Send this process's stdout, that of C++ libraries too, to another descriptor; None: nowhere."""
    sys.stdout.flush()
    stdout = os.dup(1)
    sink = os.dup(instead) if instead is not None else os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    try:
        with open(os.dup(sink), "w") as text, contextlib.redirect_stdout(text):  # noqa: PTH123, a descriptor
            yield
    finally:
        _flush_c_streams()
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(sink)


def _flush_c_streams() -> None:
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)
