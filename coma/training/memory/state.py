"""Memory of a run's weights, gradients and optimizer state: arithmetic of ZeRO (arXiv 1910.02054, section 5)."""

from dataclasses import dataclass

from coma.training.config.resolve import ResolvedRun

_FP32_BYTES = 4
_ADAM_BYTES = 8
"""AdamW's two moments, per parameter."""


@dataclass(frozen=True)
class StateMemory:
    """Bytes that each process keeps through training, without activations."""

    weights: int
    gradients: int
    optimizer: int
    """Moments, and the float32 copy of the weights where there is one."""
    buckets: int
    """Buffers in which gradients are gathered before they are reduced over the devices."""
    host: int
    """What offload keeps of these in the host's memory."""
    nvme: int
    """What offload keeps of these on NVMe."""
    swap_files: int
    """Size of the files there, which hold the gradients of a step in float32 as well."""

    @property
    def device(self) -> int:
        """Bytes on the device."""
        return self.weights + self.gradients + self.optimizer + self.buckets - self.host - self.nvme


def state_memory(parameters: int, resolved: ResolvedRun) -> StateMemory:
    """Return what each process keeps of a network with so many parameters.

    ZeRO stage 1 partitions the optimizer state over the processes, stage 2 the gradients too, stage 3 the weights too.
    """
    deepspeed = resolved.deepspeed
    # bytes of a weight as the network computes with it, which autocast keeps in float32
    size = 2 if resolved.precision in ("bf16", "fp16") else _FP32_BYTES
    has_copy = deepspeed.stage > 0 or size < _FP32_BYTES
    share = [parameters // resolved.world_size if deepspeed.stage >= stage else parameters for stage in (1, 2, 3)]
    weights, gradients = share[2] * size, share[1] * size
    optimizer = share[0] * (_ADAM_BYTES + (_FP32_BYTES if has_copy else 0))
    nvme = optimizer if deepspeed.optimizer_device == "nvme" else 0
    host = optimizer if deepspeed.optimizer_device == "cpu" else 0
    host += weights if deepspeed.parameter_device == "cpu" else 0
    bucket = deepspeed.bucket_elements
    if resolved.device == "cpu":
        bucket = min(bucket, parameters)  # pages that are never touched take no memory
    return StateMemory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        buckets=deepspeed.buckets * bucket * size,
        host=host,
        nvme=nvme,
        swap_files=nvme + (share[0] * _FP32_BYTES if nvme else 0),
    )
