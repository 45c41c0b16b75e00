"""Offload in a DeepSpeed file: what would train wrongly, could not be saved, or fails in the first step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from coma.errors import UsageError


def on_drive(zero: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what `zero_optimization` says of the optimizer's offload to a drive, None if there is none."""
    section: dict[str, Any] = zero.get("offload_optimizer") or {}
    return section if section.get("device") == "nvme" else None


def check_offload(content: Mapping[str, Any], source: str) -> None:
    """Check what a file says of offload.

    Raises:
        UsageError: naming key, value and the way out.
    """
    zero = content.get("zero_optimization", {})
    _refuse_what_cannot_be_saved(zero, source)
    if (zero.get("offload_param") or {}).get("device") == "nvme":
        # DeepSpeed may give the buffer of a small parameter away before the GPU has read it.
        raise UsageError(
            f"{source}: 'zero_optimization.offload_param.device' is \"nvme\": coma puts the optimizer on a drive, the "
            'weights no farther than the host: make it "cpu"'
        )
    if (section := on_drive(zero)) is None:
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


def with_swap_buffers(zero: Mapping[str, Any], optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `zero_optimization` with as many buffers as its offload to a drive needs, if it has one."""
    section = on_drive(zero)
    if section is None:
        return dict(zero)
    return {**zero, "offload_optimizer": {"buffer_count": _swap_buffers(section, optimizer), **section}}


def _swap_buffers(offload: Mapping[str, Any], optimizer: Mapping[str, Any]) -> int:
    """How many DeepSpeed needs to bring a group's state from a drive."""
    states = 4 + bool(optimizer.get("params", {}).get("amsgrad"))  # the weights, their gradient, the moments
    return states * (1 + bool(offload.get("pipeline_read")) + bool(offload.get("pipeline_write")))


def _refuse_what_cannot_be_saved(zero: Mapping[str, Any], source: str) -> None:
    """Refuse where DeepSpeed keeps Adam's state in places that `coma.training.engine.optimizer_state` does not read."""
    offload = zero.get("offload_optimizer") or {}
    if zero.get("zenflow"):
        key, value = "zenflow", json.dumps("on")
    elif offload.get("super_offload"):
        key, value = "offload_optimizer.super_offload", "true"
    elif offload.get("ratio", 1.0) != 1.0:
        key, value = "offload_optimizer.ratio", json.dumps(offload["ratio"])
    else:
        return
    raise UsageError(
        f"{source}: 'zero_optimization.{key}' is {value}, and coma cannot save an optimizer that is "
        "kept so: use zero3_offload, which keeps it in the host's memory"
    )
