"""Learning rate schedule, a pure function of the step and of when the run was extended.

Linear warm-up, then half a cosine, or a constant rate with a cooldown at the end. A run that is extended has one
`Segment` more, in which the schedule of the steps that are left begins anew, or the constant rate goes on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from coma.errors import UsageError
from coma.training.config.options import RunConfig

REFERENCE_BATCH = 256
WARMUP_SHARE = 0.05
"""Share of the steps that are warm-up by default: MAE's 40 epochs of 800."""
COOLDOWN_SHARE = 0.2
"""Share of the steps that are cooldown by default, as in Haegele et al., 2405.18392."""


@dataclass(frozen=True)
class Segment:
    """The schedule of a part of a run: of all of it, or from a checkpoint on after which it was extended."""

    after: int
    """Step of that checkpoint; 0: the beginning of the run."""
    start: int
    """Step from which the schedule counts: `after`, or an earlier one where a constant rate goes on."""
    end: int
    """Last step of the run, as planned here."""
    warmup_steps: int
    cooldown_steps: int | None = None
    """Steps in which a constant rate falls at the end; None: half a cosine."""

    @property
    def seamless(self) -> bool:
        """Whether an extension goes on with the rate that was there."""
        return self.start < self.after


def peak_lr(base_lr: float, batch_size: int) -> float:
    """Scale the base rate with the global batch: base_lr x batch / 256 (Goyal et al., 1706.02677)."""
    return base_lr * batch_size / REFERENCE_BATCH


def learning_rate(step: int, *, peak: float, warmup_steps: int, steps: int, cooldown_steps: int | None = None) -> float:
    """Return the learning rate of `step`, counted from 1.

    It rises linearly and reaches `peak` at step `warmup_steps`, then follows half a cosine (Loshchilov and Hutter,
    1608.03983). With `cooldown_steps` it stays at `peak` and falls in the last of them by one minus a square root
    (Haegele et al., 2405.18392). Either would reach zero at the step after the last, so that no step is wasted on a
    rate of zero.
    """
    if step <= warmup_steps:
        return peak * (step / warmup_steps)
    if cooldown_steps is None:
        progress = (step - warmup_steps) / (steps + 1 - warmup_steps)
        return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    progress = max(0, step - (steps - cooldown_steps)) / (cooldown_steps + 1)
    return peak * (1.0 - math.sqrt(min(1.0, progress)))


def rate_at(step: int, peak: float, segments: Sequence[Segment]) -> float:
    """Return the learning rate of `step`, counted from 1, in a run with these segments."""
    segment = next(each for each in reversed(segments) if each.after < step)
    return learning_rate(
        step - segment.start,
        peak=peak,
        warmup_steps=segment.warmup_steps,
        steps=segment.end - segment.start,
        cooldown_steps=segment.cooldown_steps,
    )


def plan_segment(
    config: RunConfig,
    steps_per_epoch: float,
    *,
    end: int,
    start: int = 0,
    after: int = 0,
    warmup_steps: int | None = None,
) -> Segment:
    """Return the segment whose schedule has the steps from `start` to `end`; see `Segment`.

    Raises:
        UsageError: warm-up or cooldown are longer than what is left for them.
    """
    steps = end - start
    if warmup_steps is None:
        epochs = config.warmup_epochs
        warmup_steps = round(WARMUP_SHARE * steps) if epochs is None else round(epochs * steps_per_epoch)
        if epochs and warmup_steps >= steps:
            more = " more" if after else ""
            raise UsageError(
                f"--warmup-epochs {epochs:g} is {warmup_steps} steps, and the run has {steps}{more}: warm up for less"
            )
    if config.schedule == "cosine":
        return Segment(after, start, end, warmup_steps)
    left = end - max(after, start + warmup_steps)
    if config.cooldown_epochs is None:
        return Segment(after, start, end, warmup_steps, min(left, round(COOLDOWN_SHARE * steps)))
    cooldown_steps = round(config.cooldown_epochs * steps_per_epoch)
    if cooldown_steps > left:
        raise UsageError(
            f"--cooldown-epochs {config.cooldown_epochs:g} is {cooldown_steps} steps, and {left} are left for it: "
            "cool down for less"
        )
    return Segment(after, start, end, warmup_steps, cooldown_steps)


def extend(
    segments: Sequence[Segment], config: RunConfig, steps_per_epoch: float, *, after: int, end: int
) -> tuple[Segment, ...]:
    """Return the segments of a run that goes on to step `end` from its checkpoint of step `after`.

    A constant rate goes on if its cooldown has not begun; otherwise the steps that are left have a schedule of their
    own, with a warm-up.

    Raises:
        UsageError: as `plan_segment`.
    """
    taken = tuple(each for each in segments if each.after < after)
    if not taken:  # no checkpoint: the run begins again
        return (plan_segment(config, steps_per_epoch, end=end),)
    last = taken[-1]
    if last.cooldown_steps is not None and after <= last.end - last.cooldown_steps:
        goes_on = {"start": last.start, "warmup_steps": last.warmup_steps}
        return (*taken, plan_segment(config, steps_per_epoch, end=end, after=after, **goes_on))
    return (*taken, plan_segment(config, steps_per_epoch, end=end, start=after, after=after))
