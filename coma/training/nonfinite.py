"""Steps whose loss or gradient is not finite: noted with their samples; too many of them end the run."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from torch import Tensor

from coma.errors import DivergedError
from coma.runs.lines import append_line, readable_lines
from coma.runs.names import NONFINITE_NAME
from coma.shards.manifest import Manifest
from coma.training.engine.checkpoint import TrainingState
from coma.training.engine.train_step import micro_batches
from coma.training.processes.world import World

logger = logging.getLogger(__name__)

NONFINITE_LIMIT = 10
"""Number of such steps, among the last `NONFINITE_WINDOW`, that ends a run."""
NONFINITE_WINDOW = 1000


def suspect_samples(samples: Tensor, losses: Sequence[float], micro_batch_size: int) -> list[int]:
    """Return the ids, of `samples` [B], in micro-batches whose loss is not finite."""
    parts = micro_batches(len(samples), micro_batch_size)
    ids = [samples[part].tolist() for part, loss in zip(parts, losses, strict=True) if not math.isfinite(loss)]
    return list(chain.from_iterable(ids))


def note_nonfinite(state: TrainingState, world: World, run: Path, manifest: Manifest, suspects: Sequence[int]) -> None:
    """Append a step to RUN/nonfinite.jsonl, with the `suspects` of all ranks; collective.

    Raises:
        DivergedError: the last `NONFINITE_WINDOW` steps have `NONFINITE_LIMIT` such steps among them.
    """
    samples = sorted(chain.from_iterable(world.gather(list(suspects))))
    keys = manifest.named(samples)
    what, step, path = "the loss" if samples else "the gradient", state.step, run / NONFINITE_NAME

    def record() -> int:
        """Append the line, and count those of the window: the file is what a resumed run remembers."""
        append_line(path, {"step": step, "what": what, "samples": samples, "keys": keys})
        return len({line["step"] for line in readable_lines(path) if step - NONFINITE_WINDOW < line["step"] <= step})

    count = world.run_on_rank0(record)
    if world.is_rank0:
        allowed = f"{count} of the last {NONFINITE_WINDOW} steps, {NONFINITE_LIMIT} end the run"
        logger.warning("step %d skipped: %s is not finite (%s)", step, what, allowed)
    if count >= NONFINITE_LIMIT:
        named = f", with the samples {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}" if keys else ""
        with world.raise_on_rank0():
            raise DivergedError(
                f"{count} steps without a finite loss or gradient among the last {NONFINITE_WINDOW}, the last at step "
                f"{step}{named}: see {path}; lower --base-lr, or set those samples aside"
            )
