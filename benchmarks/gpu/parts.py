"""The parts, most valuable first. Light to import: a part's module is loaded in the part's own process."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from coma.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Part:
    """A question that a GPU answers."""

    name: str
    minutes: float
    """Expected duration; a guess until it has run on a GPU."""
    question: str
    module: str
    """Module of this folder whose function `measure_NAME` does it."""

    def measure(self) -> Callable[[Any], None]:
        """Load the function that measures."""
        function = getattr(import_module(f"benchmarks.gpu.{self.module}"), f"measure_{self.name}")
        return function  # type: ignore[no-any-return]


PARTS = (
    Part("tests", 2, "do the tests marked gpu pass?", "suite"),
    Part("decode", 1, "does a GPU decode the same pictures, how fast, at which load of its engine?", "decoding"),
    Part("stream", 2, "how fast is the stream beside DALI's reader, ImageFolder and memory?", "streams"),
    Part("step", 4, "what does a training step cost, in time and memory, eager and compiled?", "steps"),
    Part("epoch", 2, "what is an epoch's time relative to MAE's, from the same stream?", "epochs"),
    Part("zero", 2, "do runs stopped and killed at ZeRO 0 to 3 go on bit for bit?", "resuming"),
    Part("curve", 2, "are the losses those of the CPU, and those of bf16 those of fp32?", "curve"),
    Part("plan", 2, "does coma plan foresee memory and time?", "commands"),
    Part("memory", 2, "what do gradient checkpointing and micro-batches cost and save?", "commands"),
    Part("crops", 3, "how long do steps at each size of growing crops take, and recompiling?", "commands"),
    Part("hours", 0.2, "how many hours does ImageNet-1k take? (from stream, step and epoch)", "epochs"),
)


def chosen(names: list[str]) -> list[Part]:
    """Return the parts of these names in their own order, all for no name. Raises UsageError."""
    known = {part.name: part for part in PARTS}
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UsageError(f"no part named {name!r}: {hint + ' ' if hint else ''}choose {', '.join(known)}")
    return [part for part in PARTS if not names or part.name in names]
