"""Number formats in a DeepSpeed file: what would end in a traceback of DeepSpeed's, or train other than it says."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import Any

from coma.errors import UsageError

_NAMES = {
    "bf16": ("bf16", "bfloat16", "torch.bfloat16"),
    "fp16": ("fp16", "float16", "half", "torch.float16"),
    "fp32": ("fp32", "float32", "float", "torch.float32"),
}
"""As DeepSpeed has them; it also takes int8, in which nothing here can be trained."""
_MODES = ("bf16", "fp16", "torch_autocast")


def precision(content: Mapping[str, Any]) -> str | None:
    """Return bf16, fp16, fp32 or `bfloat16 autocast` where a file decides it, else None."""
    for section in _MODES:
        if content.get(section, {}).get("enabled"):
            return "bfloat16 autocast" if section == "torch_autocast" else section
    return "fp32" if set(_MODES) & set(content) else None


def with_autocast_dtype(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return `content` with autocast's format in it, which on a GPU would be float16, without a loss scale."""
    autocast = content.get("torch_autocast", {})
    if not autocast.get("enabled"):
        return dict(content)
    return {**content, "torch_autocast": {"dtype": "bfloat16", **autocast}}


def check_precision(content: Mapping[str, Any], source: str) -> None:
    """Check the formats that a file names, one by one and with each other.

    Raises:
        UsageError: naming key, value and what it may be.
    """
    on = [f"{section}.enabled" for section in _MODES if content.get(section, {}).get("enabled")]
    if len(on) > 1:
        raise UsageError(f"{source} has both {on[0]!r} and {on[1]!r} true: keep one")
    if content.get("fp16", {}).get("enabled") and not content.get("zero_optimization", {}).get("stage", 0):
        # DeepSpeed divides the gradients by a loss scale by which it has not multiplied the loss.
        raise UsageError(
            f"{source} has 'fp16.enabled' true at ZeRO stage 0, which trains wrongly: use stage 1"
        )
    if content.get("bf16", {}).get("check_grad_overflow", True) is not True:
        raise _wrong(
            "bf16.check_grad_overflow", False, "true, or gradients that are not finite are applied", source
        )
    communication = content.get("communication_data_type")
    if communication is not None and str(communication).lower() not in _NAMES:
        raise _wrong("communication_data_type", communication, "bf16, fp16 or fp32", source)
    _check_autocast(content.get("torch_autocast", {}), source)
    _check_data_types(content, source)


def _check_autocast(autocast: Mapping[str, Any], source: str) -> None:
    # With float16 DeepSpeed scales the loss, and gives norms and skips steps that nobody here knows to be scaled.
    if "dtype" in autocast and autocast["dtype"] not in _NAMES["bf16"]:
        raise _wrong("torch_autocast.dtype", autocast["dtype"], "bfloat16; for float16 use 'fp16'", source)
    modules = autocast.get("lower_precision_safe_modules", [])
    for name in _names("torch_autocast.lower_precision_safe_modules", modules, source):
        package, _, kind = name.rpartition(".")
        try:
            getattr(importlib.import_module(package), kind)
        except (ImportError, AttributeError, ValueError):
            raise _wrong(
                "torch_autocast.lower_precision_safe_modules",
                name,
                "a module's class: torch.nn.Linear",
                source,
            ) from None


def _check_data_types(content: Mapping[str, Any], source: str) -> None:
    types = content.get("data_types", {})
    _names("data_types.keep_in_fp32_modules", types.get("keep_in_fp32_modules", []), source)
    weights = precision(content)
    weights = "fp32" if weights == "bfloat16 autocast" else weights
    stage = int(content.get("zero_optimization", {}).get("stage", 0))
    for name in ("grad_accum_dtype", "param_dtype", "buffer_dtype"):
        value = types.get(name)
        if value is None:
            continue
        found = next((kind for kind, names in _NAMES.items() if value in names), None)
        if found is None:
            raise _wrong(f"data_types.{name}", value, "bf16, fp16 or fp32", source)
        if found != weights and (name == "param_dtype" or (name == "grad_accum_dtype" and stage == 0)):
            others = ", or use ZeRO stage 1" if name == "grad_accum_dtype" else ""
            raise _wrong(
                f"data_types.{name}",
                value,
                f"that of the weights, {weights or 'which this file leaves to the machine'}: delete the key, or say "
                f"in 'bf16' or 'fp16' what is enabled{others}",
                source,
            )


def _names(key: str, value: Any, source: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _wrong(key, value, "a list of names", source)
    return value


def _wrong(key: str, value: Any, allowed: str, source: str) -> UsageError:
    return UsageError(f"{source}: {key!r} is {json.dumps(value)}; it must be {allowed}")
