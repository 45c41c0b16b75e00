"""Out of memory in a step: one line that names the step, what it was of, and the flags that help."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from coma.errors import ComaError, is_out_of_memory
from coma.training.config.options import RunConfig
from coma.training.config.resolve import ResolvedRun, divisors
from coma.training.processes.world import World


@contextmanager
def naming_lack_of_memory(config: RunConfig, resolved: ResolvedRun, world: World, step: int) -> Iterator[None]:
    """Raise ComaError where a step in the block runs out of a GPU's memory or the machine's."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        here = "" if world.size == 1 else f"rank {world.rank} on {socket.gethostname()}: "
        raise ComaError(
            f"{here}out of memory in step {step}, of {resolved.micro_batch_size} images at a time on each device: "
            f"give {_ways_out(config, resolved)}; the same command with it resumes from the last checkpoint"
        ) from error


def _ways_out(config: RunConfig, resolved: ResolvedRun) -> str:
    smaller = [each for each in divisors(resolved.images_per_device) if each <= resolved.micro_batch_size // 2]
    ways = [f"--micro-batch-size {smaller[-1]}"] if smaller else []
    if config.checkpointed_stages is not None:
        ways.append("--grad-checkpointing all")
    if resolved.device == "cuda" and resolved.deepspeed.optimizer_device == "none":
        ways.append("--ds-config zero2_offload")
    return " or ".join(ways or ["a smaller --model"])
