"""Disk that a run needs, by arithmetic."""

from coma.training.config.resolve import ResolvedRun

_CHECKPOINT_BYTES = 12
"""Per parameter, at any stage and precision: the weight in float32 and Adam's two moments."""
_METRICS_BYTES = 800
"""A step's line in metrics.jsonl and its figures in TensorBoard."""


def checkpoint_bytes(parameters: int) -> int:
    """Return the size of a checkpoint."""
    return parameters * _CHECKPOINT_BYTES


def metrics_bytes(resolved: ResolvedRun) -> int:
    """Return the approximate size of a whole run's logs."""
    return resolved.steps * _METRICS_BYTES
