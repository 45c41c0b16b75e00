"""Offload in a DeepSpeed configuration: what would train wrongly, could not be saved, or fails in the first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coma.errors import UsageError


def nvme_section(zero: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return `offload_optimizer` of a `zero_optimization` that keeps the optimizer on NVMe, else None."""
    section: dict[str, Any] = zero.get("offload_optimizer") or {}
    return section if section.get("device") == "nvme" else None


def check_offload(content: Mapping[str, Any], source: str) -> None:
    """Check what a file says of offload.

    Raises:
        UsageError: naming the key, the value and the way out.
    """
    zero = content.get("zero_optimization", {})
    ratio = (zero.get("offload_optimizer") or {}).get("ratio", 1.0)
    if ratio != 1.0:
        raise UsageError(
            f"{source}: 'zero_optimization.offload_optimizer.ratio' is {ratio}, and coma cannot save an optimizer that "
            "is split between device and host: delete the key, or use zero3_offload"
        )
    if (zero.get("offload_param") or {}).get("device") == "nvme":
        # DeepSpeed may give the buffer of a small parameter away before the GPU has read it.
        raise UsageError(
            f"{source}: 'zero_optimization.offload_param.device' is \"nvme\": coma puts the optimizer on a drive, the "
            'weights no farther than the host: make it "cpu"'
        )
    if (section := nvme_section(zero)) is None:
        return
    if zero.get("stage", 0) != 3:
        raise UsageError(
            f"{source}: 'zero_optimization.offload_optimizer.device' is \"nvme\", which takes stage 3: set "
            "'zero_optimization.stage' to 3, or use zero2_offload"
        )
    count, needed = section.get("buffer_count"), _swap_buffers(section, content.get("optimizer", {}))
    if count is not None and count < needed:
        raise UsageError(
            f"{source}: 'zero_optimization.offload_optimizer.buffer_count' is {count}, and AdamW takes {needed} here: "
            "delete the key"
        )


def with_swap_buffers(zero: Mapping[str, Any], optimizer: Mapping[str, Any], nvme_path: str | None) -> dict[str, Any]:
    """Return a `zero_optimization` with the buffers and the folder that its NVMe offload needs, if it has one."""
    section = nvme_section(zero)
    if section is None:
        return dict(zero)
    path = {} if nvme_path is None else {"nvme_path": nvme_path}
    return {**zero, "offload_optimizer": {"buffer_count": _swap_buffers(section, optimizer), **section, **path}}


def _swap_buffers(offload: Mapping[str, Any], optimizer: Mapping[str, Any]) -> int:
    """Count the buffers that DeepSpeed needs to read the state of a group of parameters."""
    states = 4 + bool(optimizer.get("params", {}).get("amsgrad"))  # the weights, their gradient, the moments
    return states * (1 + bool(offload.get("pipeline_read")) + bool(offload.get("pipeline_write")))
