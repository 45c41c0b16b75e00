"""What fits in memory: `--micro-batch-size auto`, and the refusal of a run that cannot fit, before its first step.

Two forecasts, so that neither errs to the wrong side: `Footprint.expected`, by which a micro-batch is chosen, and
`Footprint.least`, which a step needs for certain and above which a run is refused.
"""

from __future__ import annotations

import functools
import gc
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from rich.filesize import decimal
from torch import Tensor, nn

from coma.errors import UsageError, is_out_of_memory
from coma.training.config.resolve import ResolvedRun, divisors
from coma.training.memory.activations import Activations, measure_activations
from coma.training.memory.available import gpu_memory, process_memory
from coma.training.memory.state import StateMemory, state_memory
from coma.training.processes.world import World
from coma.training.setup import Prepared
from coma.training.tasks.task import Task

logger = logging.getLogger(__name__)

USABLE = 0.85
"""Share of the free memory that a forecast may fill; the rest is for buffers, kernels' workspaces and the stream."""
_BATCHES = 3
"""Batches of images that are in memory at a time: in the step, ready, and in the making."""
_BESIDE = 300_000_000
"""Bytes of a process on a CPU beside the network: the stream's threads, buffers, libraries that are loaded late."""
_PATIENCE_S = 3.0
"""How long memory may take to become free, as when a program has just ended, before a run is refused."""
_POLL_S = 0.5


@dataclass(frozen=True)
class Footprint:
    """Memory of a step on each device, in bytes, by forecast."""

    state: StateMemory
    activations: Activations
    image_bytes: int
    """Size of an image as the network takes it."""

    def expected(self, resolved: ResolvedRun) -> int:
        """Return what a step of the run takes at its peak."""
        inputs = _BATCHES * self.image_bytes * resolved.images_per_device
        beside = 0
        if resolved.device == "cpu":  # weights are collected for pictures and checkpoints, and that memory is kept
            beside = _BESIDE + 2 * self.state.weights
        return self.state.device + self.activations.peak * resolved.micro_batch_size + inputs + beside

    def least(self, resolved: ResolvedRun) -> int:
        """Return what a step of the run cannot do without: at the end of a forward pass, or of the backward pass."""
        state = self.state
        lasting = state.device - state.buckets - state.gradients + self.image_bytes * resolved.images_per_device
        accumulated = state.gradients if resolved.accumulation > 1 else 0
        return lasting + max(state.gradients, accumulated + self.activations.kept * resolved.micro_batch_size)


def fit(prepared: Prepared, world: World) -> Prepared:
    """Choose the micro-batch of `--micro-batch-size auto`, and check that a step can fit in memory; collective.

    Nothing is left behind: random generators, weights and a GPU's memory are as they were.

    Raises:
        UsageError: it cannot. One rank raises it, the others leave quietly.
    """
    hosts = world.gather(socket.gethostname())  # and by now every process has built its network
    processes = hosts.count(socket.gethostname())
    auto = prepared.config.micro_batch_size == "auto"
    footprint = world.run_on_all(lambda: measure(prepared, backward=auto))
    if auto:
        found = world.run_on_all(lambda: _largest_micro_batch(prepared, footprint, world.device, processes))
        prepared = replace(prepared, resolved=prepared.resolved.in_micro_batches_of(min(world.gather(found))))
        if world.is_rank0:
            free = decimal(free_bytes(prepared, world.device, processes))
            expected = decimal(footprint.expected(prepared.resolved))
            images = f"{prepared.resolved.micro_batch_size} of {prepared.resolved.images_per_device} images"
            logger.info(
                "%-9s %s a device at a time: about %s of the %s that are free", "memory", images, expected, free
            )
    world.run_on_all(lambda: _check(prepared, footprint, world.device, processes))
    return prepared


def measure(prepared: Prepared, *, backward: bool = True) -> Footprint:
    """Forecast the memory of a step; takes a few tenths of a second, and nothing of the device.

    Without `backward`, which takes a second longer, the peak is that of the forward pass, unless activations are
    recomputed.
    """
    task, resolved = prepared.task, prepared.resolved
    recomputes = any(getattr(module, "grad_checkpointing", False) for module in task.model.modules())
    build = functools.partial(_another, task)
    activations = measure_activations(build, task.example, _weight_type(resolved), backward=backward or recomputes)
    with torch.device("meta"):
        image_bytes = sum(each.nbytes for each in task.example(1))
    return Footprint(state_memory(prepared.facts["parameters"], resolved), activations, image_bytes)


def _another(task: Task) -> nn.Module:
    """Make a network that keeps and recomputes what the task's own does."""
    network = task.build()
    for name, module in task.model.named_modules():
        if hasattr(module, "grad_checkpointing"):
            network.get_submodule(name).grad_checkpointing = module.grad_checkpointing
    return network


def free_bytes(prepared: Prepared, device: torch.device, processes: int) -> int:
    """Return the memory that this process, of so many on this machine, has for the run on its device.

    On a CPU the weights are there already, in float32.
    """
    if device.type == "cuda":
        return gpu_memory(device)
    return process_memory(processes) + _own_weights(prepared)


def _own_weights(prepared: Prepared) -> int:
    return sum(each.nbytes for each in prepared.task.model.parameters() if each.device.type == "cpu")


def _weight_type(resolved: ResolvedRun) -> torch.dtype:
    """Return the type of the weights, or under autocast of most activations."""
    half = {"bf16": torch.bfloat16, "bfloat16 autocast": torch.bfloat16, "fp16": torch.float16}
    return half.get(resolved.precision, torch.float32)


def fitting(resolved: ResolvedRun, footprint: Footprint, free: int) -> list[int]:
    """Return the divisors of the images per device that are expected to fit in `free` bytes, the largest first."""
    sizes = reversed(divisors(resolved.images_per_device))
    return [each for each in sizes if footprint.expected(resolved.in_micro_batches_of(each)) <= USABLE * free]


# -- --micro-batch-size auto ---------------------------------------------------------------------------------------


def _largest_micro_batch(prepared: Prepared, footprint: Footprint, device: torch.device, processes: int) -> int:
    """Return the largest divisor of the images per device that fits by forecast and, on a GPU, in a trial; or 1."""
    resolved, free = prepared.resolved, free_bytes(prepared, device, processes)
    sizes = fitting(resolved, footprint, free) or [1]
    if device.type == "cuda":
        state = footprint.state.device + int((1 - USABLE) * free)
        sizes = [*_that_pass(prepared.task, resolved, device, sizes, state), 1]
    return sizes[0]


def _that_pass(
    task: Task, resolved: ResolvedRun, device: torch.device, sizes: list[int], state_bytes: int
) -> list[int]:
    """Return the first of the micro-batches that passes a trial, and those after it."""
    dtype = torch.float32 if "autocast" in resolved.precision else _weight_type(resolved)
    for number, images in enumerate(sizes):
        passed = passes_trial(functools.partial(_another, task), task.example, dtype, device, images, state_bytes)
        logger.debug("a trial of %d images at a time %s", images, "fits" if passed else "is out of memory")
        if passed:
            return sizes[number:]
    return []


def passes_trial(
    build: Callable[[], nn.Module],
    example: Callable[[int], tuple[Tensor, ...]],
    dtype: torch.dtype,
    device: torch.device,
    images: int,
    state_bytes: int,
) -> bool:
    """Whether a forward and backward pass fits on a device beside `state_bytes`, the gradients among them.

    A second network is used for it, and all memory is given back.
    """

    def step() -> None:
        network = build().to(device, dtype)
        weights = 2 * sum(each.nbytes for each in network.parameters())  # and gradients, which come of themselves
        beside = torch.empty(max(0, state_bytes - weights), dtype=torch.uint8, device=device)
        network(*(each.to(device) for each in example(images))).backward()
        del beside

    is_gpu = device.type == "cuda"
    try:
        with torch.random.fork_rng(devices=[device] if is_gpu else []):
            step()
            if is_gpu:
                torch.cuda.synchronize(device)
        return True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        gc.collect()
        if is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)


# -- the refusal ---------------------------------------------------------------------------------------------------


def _check(prepared: Prepared, footprint: Footprint, device: torch.device, processes: int) -> None:
    """Raise UsageError if a step needs more than there is, in the device's memory or, offloaded, in the machine's."""
    resolved, state = prepared.resolved, footprint.state
    least = footprint.least(resolved)
    free = _enough(least, lambda: free_bytes(prepared, device, processes))
    if free is not None:
        parts = (
            f"{decimal(least - footprint.activations.kept * resolved.micro_batch_size)} for the network's state and "
            f"{decimal(footprint.activations.kept * resolved.micro_batch_size)} for {resolved.micro_batch_size} images "
            "at a time"
        )
        where = "on each device" if device.type == "cuda" else "in each process" if processes > 1 else "here"
        raise UsageError(
            f"a step takes at least {decimal(least)} of memory {where} ({parts}), and {decimal(free)} are free: "
            f"{_ways_out(prepared, footprint, free)}"
        )
    free = _enough(state.host, lambda: process_memory(processes) + _own_weights(prepared))
    if free is not None:
        raise UsageError(
            f"{resolved.ds_config} keeps {decimal(state.host)} of each process in this machine's memory, and "
            f"{decimal(free)} are free: use fewer --devices, zero3_nvme, or a smaller --model"
        )


def _enough(need: int, look: Callable[[], int]) -> int | None:
    """Return None if so much memory is free or becomes free soon, else how much is."""
    until = time.monotonic() + _PATIENCE_S
    while need > (free := look()):
        if time.monotonic() >= until:
            return free
        time.sleep(_POLL_S)
    return None


def _ways_out(prepared: Prepared, footprint: Footprint, free: int) -> str:
    """Return which flags would make it fit."""
    resolved = prepared.resolved
    if sizes := fitting(resolved, footprint, free):
        also = "" if prepared.config.checkpointed_stages is None else ", and --grad-checkpointing all takes less"
        return f"--micro-batch-size {sizes[0]} fits{also}"
    inputs = footprint.image_bytes * resolved.images_per_device
    if footprint.least(_of_one_image(resolved)) <= free < _BATCHES * inputs + footprint.state.device:
        return "give a smaller --batch-size, as even its images alone take much of that"
    ways = ["a smaller --model"]
    if prepared.config.checkpointed_stages is not None and footprint.least(_of_one_image(resolved)) <= free:
        ways.insert(0, "--micro-batch-size 1 --grad-checkpointing all")
    if resolved.device == "cuda" and footprint.state.host == 0:
        ways.append("--ds-config zero3_offload, which keeps the state in the machine's memory")
    if resolved.world_size > 1 and resolved.stage < 3:
        ways.append("--ds-config zero3, which cuts the state among the processes")
    return f"use {', or '.join(ways)}"


def _of_one_image(resolved: ResolvedRun) -> ResolvedRun:
    return replace(resolved, batch_size=resolved.world_size, micro_batch_size=1, accumulation=1)
