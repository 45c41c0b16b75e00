"""Learning rate schedule, a pure function of the step: linear warm-up, then half a cosine."""

import math

REFERENCE_BATCH = 256


def peak_lr(base_lr: float, batch_size: int) -> float:
    """Scale the base rate with the global batch: base_lr x batch / 256 (Goyal et al., 1706.02677)."""
    return base_lr * batch_size / REFERENCE_BATCH


def learning_rate(step: int, *, peak: float, warmup_steps: int, steps: int) -> float:
    """Return the learning rate of `step`, counted from 1.

    It rises linearly and reaches `peak` at step `warmup_steps`, then follows half a cosine (Loshchilov and
    Hutter, 1608.03983) that would reach zero at the step after the last, so that no step is wasted on a rate
    of zero.
    """
    if step <= warmup_steps:
        return peak * (step / warmup_steps)
    progress = (step - warmup_steps) / (steps + 1 - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
