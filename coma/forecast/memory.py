"""What a run needs of memory and disk, by arithmetic: DeepSpeed's ZeRO (arXiv 1910.02054, section 5), checkpoints.

What the forward pass keeps for the backward pass is not in it: that depends on the network (`estimate`).
"""

from dataclasses import dataclass

from coma.training.config.ds_offload import on_drive
from coma.training.config.resolve import ResolvedRun

FP32_BYTES = 4
_ADAM_BYTES = 8
"""AdamW's two moments, a parameter."""
_METRICS_BYTES = 800
"""A step's line in metrics.jsonl and its figures in TensorBoard."""


@dataclass(frozen=True)
class StateMemory:
    """Bytes that each process keeps through training, but for activations."""

    weights: int
    gradients: int
    optimizer: int
    """Moments, and the float32 copy of the weights where there is one."""
    buckets: int
    """Where gradients are gathered before they are reduced over the devices."""
    host: int
    """Of these, what offloading moves to the host's memory."""
    drive: int
    """Of these, what it moves to a drive."""
    files: int
    """What that takes on the drive, where the gradients of a step lie in float32 as well."""

    @property
    def device(self) -> int:
        """Bytes on the device."""
        return self.weights + self.gradients + self.optimizer + self.buckets - self.host - self.drive


def state_memory(parameters: int, resolved: ResolvedRun) -> StateMemory:
    """Return what a process keeps: stage 1 parts the optimizer's states among them, 2 gradients, 3 weights."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = DeepSpeedZeroConfig(**resolved.deepspeed["zero_optimization"])
    size = weight_bytes(resolved)
    share = [
        parameters // resolved.world_size if resolved.stage >= stage else parameters for stage in (1, 2, 3)
    ]
    weights, gradients = share[2] * size, share[1] * size
    optimizer = share[0] * optimizer_bytes(resolved)
    drive = optimizer if on_drive(resolved.deepspeed["zero_optimization"]) else 0
    host = (optimizer - drive if zero.offload_optimizer else 0) + (weights if zero.offload_param else 0)
    return StateMemory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        buckets=_bucket_bytes(parameters, resolved, zero),
        host=host,
        drive=drive,
        files=drive + (share[0] * FP32_BYTES if drive else 0),
    )


def _bucket_bytes(parameters: int, resolved: ResolvedRun, zero: object) -> int:
    bucket, contiguous, overlap = (
        getattr(zero, name) for name in ("reduce_bucket_size", "contiguous_gradients", "overlap_comm")
    )
    if resolved.stage == 0 or not contiguous:
        return 0
    if resolved.device == "cpu":
        bucket = min(bucket, parameters)  # what is not touched is not there
    return int(bucket) * weight_bytes(resolved) * (2 if overlap and resolved.stage < 3 else 1)


def weight_bytes(resolved: ResolvedRun) -> int:
    """Bytes of a weight as the network computes with it; autocast keeps float32."""
    return 2 if resolved.precision in ("bf16", "fp16") else FP32_BYTES


def optimizer_bytes(resolved: ResolvedRun) -> int:
    """Bytes of the optimizer's states a parameter, with DeepSpeed's float32 copy of the weights, if it has one."""
    plain = resolved.stage == 0 and weight_bytes(resolved) == FP32_BYTES
    return _ADAM_BYTES + (0 if plain else FP32_BYTES)


def checkpoint_bytes(parameters: int) -> int:
    """Return the size of a checkpoint: the weights in float32 and Adam's two moments, at any stage and precision."""
    return parameters * (FP32_BYTES + _ADAM_BYTES)


def metrics_bytes(resolved: ResolvedRun) -> int:
    """Return about how much a whole run logs."""
    return resolved.steps * _METRICS_BYTES
