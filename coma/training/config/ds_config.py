"""The DeepSpeed configuration of a run: the file that --ds-config names, and its typed form."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coma.deepspeed_configs import packaged
from coma.errors import UsageError, did_you_mean
from coma.training.config.ds_check import ACCUMULATION_KEY, BATCH_KEY, MICRO_KEY, check
from coma.training.config.ds_offload import with_swap_buffers
from coma.training.config.ds_precision import precision_of, with_precision


@dataclass(frozen=True, kw_only=True)
class DeepSpeedConfig:
    """A checked DeepSpeed configuration, as `check_ds_config` makes it.

    None is what the file leaves to the command line or the machine; `resolve` fills it in.
    """

    source: str
    """What messages call it: a packaged name, or the path."""
    content: Mapping[str, Any]
    """The JSON object as the user wrote it, without its keys that are "auto"."""
    auto: tuple[str, ...] = ()
    """Those keys, such as "bf16.enabled": coma derives them, or DeepSpeed's default stands."""
    stage: int
    """ZeRO stage, 0 to 3."""
    precision: str | None
    """bf16, fp16, fp32 or `bfloat16 autocast`."""
    batch_size: int | None
    """Images per step over all devices."""
    micro_batch_size: int | None
    """Images per forward pass on each device."""
    accumulation: int | None
    """Micro-batches per step: gradient accumulation."""
    gradient_clipping: float
    """Largest norm of the gradient over all parameters."""
    betas: tuple[float, float] | None
    """AdamW's decay rates of its two moments."""
    weight_decay: float = 0.0
    """AdamW's weight decay, which a file does not set."""
    optimizer_device: str
    """Where the optimizer state is kept: "none" (on the device), "cpu" or "nvme"."""
    parameter_device: str
    """Where the parameters are kept: "none" (on the device) or "cpu"."""
    nvme_path: str | None
    """Folder for the files of an NVMe offload; None: the system's temporary folder."""
    bucket_elements: int
    """Gradient elements in a bucket, which is reduced over the devices as a whole."""
    buckets: int
    """Number of such buckets that are kept in memory at a time."""

    def auto_values(self) -> dict[str, Any]:
        """Return what the keys that are "auto" come to, once all fields are filled in."""
        values = {}
        for name in self.auto:
            value: Any = self.to_json()
            for key in name.split("."):
                value = value.get(key, "DeepSpeed's default") if isinstance(value, dict) else value
            values[name] = "set by coma" if name == "optimizer.params.lr" else value
        return values

    def to_json(self) -> dict[str, Any]:
        """Return what `deepspeed.initialize` is given, once all fields are filled in."""
        assert self.betas, "resolve fills it in"
        optimizer = self.content.get("optimizer", {})
        # torch's own AdamW: DeepSpeed's is compiled at the first start, which needs a matching CUDA toolkit.
        params = {
            "betas": list(self.betas),
            "torch_adam": True,
            "lr": 0.0,  # it is set before each step, and DeepSpeed takes one with empty gradients before the first
            **optimizer.get("params", {}),
            "weight_decay": self.weight_decay,
        }
        if params["torch_adam"] and not params.get("foreach"):
            params.setdefault("fused", True)  # one pass over memory, on a CPU as well
        if params["torch_adam"]:
            params.pop("bias_correction", None)  # which torch's always has
        zero = self.content.get("zero_optimization", {"stage": 0})
        content = {
            "gradient_clipping": self.gradient_clipping,
            "steps_per_print": 1_000_000_000,
            **with_precision(self.content, self.precision),
            BATCH_KEY: self.batch_size,
            MICRO_KEY: self.micro_batch_size,
            ACCUMULATION_KEY: self.accumulation,
            "zero_optimization": with_swap_buffers(zero, optimizer, self.nvme_path),
            "optimizer": {"type": optimizer.get("type", "AdamW"), "params": params},
        }
        return copy.deepcopy(content)  # DeepSpeed may write into it

    def identity(self) -> dict[str, Any]:
        """Return the part of `to_json` that a resumed run must have in common with its beginning.

        How a run is spread over devices is not in it, nor the kernel of the update: the state is the same.
        """
        content = self.to_json()
        params = content["optimizer"]["params"]
        for section, keys in (
            (content, (BATCH_KEY, MICRO_KEY, ACCUMULATION_KEY, "zero_optimization")),
            (params, ("lr", "foreach", "fused")),
        ):
            for key in keys:
                section.pop(key, None)
        return content


def read_ds_config(name: str) -> DeepSpeedConfig:
    """Read and check the configuration at a path, or the packaged one of that name.

    Raises:
        UsageError: there is none, it is not JSON, or it says something that would be ignored or overridden.
    """
    path = Path(name)
    source = name
    if not path.is_file():
        names = packaged()
        stem = name.removesuffix(".json")
        if stem not in names:
            hint = did_you_mean(stem, names)
            raise UsageError(
                f"--ds-config {name!r} is neither a file nor one of {', '.join(names)}{hint and f'; {hint}'}"
            )
        path, source = names[stem], f"{stem}.json"
    try:
        content = json.loads(path.read_text("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, OSError, RecursionError) as error:
        raise UsageError(f"{source} is not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{source} holds a {type(content).__name__}; a DeepSpeed configuration is a JSON object")
    return check_ds_config(content, source)


def check_ds_config(content: Mapping[str, Any], source: str) -> DeepSpeedConfig:
    """Check a configuration's JSON object, which messages call `source`, and return its typed form.

    Raises:
        UsageError: a key or value would be ignored, overridden or fail; the message names it and the way out.
    """
    content, auto = _without_auto(content)
    zero = check(content, source)
    stage = int(zero.stage)
    buckets = int(stage > 0 and zero.contiguous_gradients) * (2 if zero.overlap_comm and stage < 3 else 1)
    betas = content.get("optimizer", {}).get("params", {}).get("betas")
    offload = content.get("zero_optimization", {}).get("offload_optimizer") or {}
    return DeepSpeedConfig(
        source=source,
        content=content,
        auto=tuple(auto),
        stage=stage,
        precision=precision_of(content),
        batch_size=content.get(BATCH_KEY),
        micro_batch_size=content.get(MICRO_KEY),
        accumulation=content.get(ACCUMULATION_KEY),
        gradient_clipping=content.get("gradient_clipping", 1.0),
        betas=None if betas is None else tuple(betas),
        optimizer_device=_device(zero.offload_optimizer),
        parameter_device=_device(zero.offload_param),
        nvme_path=offload.get("nvme_path"),
        bucket_elements=zero.reduce_bucket_size,
        buckets=buckets,
    )


def _without_auto(content: Mapping[str, Any], path: str = "") -> tuple[dict[str, Any], list[str]]:
    """Return a section without its keys that are "auto", and the names of these.

    A section that is enabled by "auto" goes as a whole: whether it holds is for coma to derive.
    """
    kept: dict[str, Any] = {}
    auto: list[str] = []
    for key, value in content.items():
        name = f"{path}{key}"
        if value == "auto":
            auto.append(name)
        elif isinstance(value, dict):
            section, names = _without_auto(value, f"{name}.")
            auto += names
            if f"{name}.enabled" not in names:
                kept[key] = section
        else:
            kept[key] = value
    return kept, auto


def _device(offload: Any) -> str:
    device = getattr(offload, "device", "none")
    return str(getattr(device, "value", device))  # an enum by default, a string where the file has one


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return content
