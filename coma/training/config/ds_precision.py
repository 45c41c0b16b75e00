"""Number formats in a DeepSpeed configuration: which one it trains in, and the combinations that are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from coma.errors import UsageError

_MODES = ("bf16", "fp16", "torch_autocast")


def precision_of(content: Mapping[str, Any]) -> str | None:
    """Return bf16, fp16, fp32 or `bfloat16 autocast` where a file decides it, else None."""
    for section in _MODES:
        if content.get(section, {}).get("enabled"):
            return "bfloat16 autocast" if section == "torch_autocast" else section
    return "fp32" if set(_MODES) & set(content) else None


def chosen_precision(asked: str | None, content: Mapping[str, Any], source: str) -> str | None:
    """Return the precision that --precision asks for, or else the file; None where neither decides it.

    Raises:
        UsageError: the two contradict each other, or DeepSpeed does not train rightly in it.
    """
    in_file = precision_of(content)
    if asked is not None and in_file not in (None, asked):
        sections = " and ".join(repr(section) for section in _MODES if section in content)
        raise UsageError(
            f"--precision {asked} contradicts {sections} in {source}, which is {in_file}: delete from the file what "
            "it says of precision, or leave --precision out"
        )
    if asked == "fp16" and not content.get("zero_optimization", {}).get("stage", 0):
        raise UsageError(f"--precision fp16 trains wrongly at ZeRO stage 0 ({source}): use --ds-config zero1, or bf16")
    return asked or in_file


def with_precision(content: Mapping[str, Any], precision: str | None) -> dict[str, Any]:
    """Return `content` with its precision written out: that of the run, where the file names none.

    Autocast gets its format too, which on a GPU would be float16, without a loss scale.
    """
    if precision_of(content) is None and precision == "fp16":
        return {**content, "fp16": {"enabled": True}}
    if precision_of(content) is None:
        return {**content, "bf16": {"enabled": precision == "bf16"}}
    autocast = content.get("torch_autocast", {})
    if autocast.get("enabled"):
        return {**content, "torch_autocast": {"dtype": "bfloat16", **autocast}}
    return dict(content)


def check_precision(content: Mapping[str, Any], source: str) -> None:
    """Check the formats that a file names, one by one and with each other.

    Raises:
        UsageError: naming the key, the value and what it may be.
    """
    on = [f"{section}.enabled" for section in _MODES if content.get(section, {}).get("enabled")]
    if len(on) > 1:
        raise UsageError(f"{source} has both {on[0]!r} and {on[1]!r} true: keep one")
    if content.get("fp16", {}).get("enabled") and not content.get("zero_optimization", {}).get("stage", 0):
        # DeepSpeed divides the gradients by a loss scale by which it has not multiplied the loss.
        raise UsageError(f"{source} has 'fp16.enabled' true at ZeRO stage 0, which trains wrongly: use stage 1")
    if content.get("bf16", {}).get("check_grad_overflow", True) is not True:
        raise must_be("true, or gradients that are not finite are applied", "bf16.check_grad_overflow", False, source)
    communication = content.get("communication_data_type")
    if communication is not None and str(communication).lower() not in ("bf16", "fp16", "fp32"):
        raise must_be("bf16, fp16 or fp32", "communication_data_type", communication, source)
    autocast = content.get("torch_autocast", {})
    # With float16 DeepSpeed scales the loss, and gives norms and skips steps that nobody here knows to be scaled.
    if autocast.get("dtype", "bf16") not in ("bf16", "bfloat16", "torch.bfloat16"):
        raise must_be("bfloat16; for float16 use 'fp16'", "torch_autocast.dtype", autocast["dtype"], source)


def must_be(allowed: str, key: str, value: Any, source: str) -> UsageError:
    """Return the error for a key whose value is not what is `allowed`."""
    return UsageError(f"{source}: {key!r} is {json.dumps(value)}; it must be {allowed}")
