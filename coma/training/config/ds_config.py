"""DeepSpeed's configuration file: found, checked and completed before anything else happens.

DeepSpeed ignores a misspelt top-level key, drops `"auto"` and lets a `scheduler` overwrite the learning rate,
all in silence. Here each is an error that names the key and the file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coma.deepspeed_configs import packaged
from coma.errors import UsageError, did_you_mean
from coma.training.config.ds_offload import check_offload, with_swap_buffers
from coma.training.config.ds_precision import check_precision, precision, with_autocast_dtype

BATCH_KEY = "train_batch_size"
MICRO_KEY = "train_micro_batch_size_per_gpu"
ACCUMULATION_KEY = "gradient_accumulation_steps"

_ANYTHING = None
"""Stands for: a plain value, or a section whose keys DeepSpeed does not fix."""

_SECTIONS: dict[str, tuple[str, ...] | None] = {
    BATCH_KEY: _ANYTHING,
    MICRO_KEY: _ANYTHING,
    ACCUMULATION_KEY: _ANYTHING,
    "gradient_clipping": _ANYTHING,
    "prescale_gradients": _ANYTHING,
    "gradient_predivide_factor": _ANYTHING,
    "communication_data_type": _ANYTHING,
    "zero_allow_untested_optimizer": _ANYTHING,
    "zero_force_ds_cpu_optimizer": _ANYTHING,
    "steps_per_print": _ANYTHING,
    "wall_clock_breakdown": _ANYTHING,
    "memory_breakdown": _ANYTHING,
    "dump_state": _ANYTHING,
    "optimizer": ("type", "params"),
    "torch_autocast": ("enabled", "dtype", "lower_precision_safe_modules"),
    "data_types": ("grad_accum_dtype", "param_dtype", "buffer_dtype", "keep_in_fp32_modules"),
    "flops_profiler": (
        "enabled",
        "recompute_fwd_factor",
        "profile_step",
        "module_depth",
        "top_modules",
        "detailed",
        "output_file",
    ),
}
"""The sections that coma hands on, with their keys; DeepSpeed itself describes those of `_model_sections`."""

_OURS = {
    "aio": "coma reads and writes the files of an offload itself: delete the section",
    "scheduler": "coma sets the learning rate before each step: use --base-lr and --warmup-epochs",
    "optimizer.params.lr": "coma sets the learning rate: use --base-lr",
    "optimizer.params.weight_decay": "use --weight-decay",
}
_OPTIMIZER_PARAMS = (
    "betas",
    "eps",
    "torch_adam",
    "foreach",
    "fused",
    "adam_w_mode",
    "bias_correction",
    "amsgrad",
)

_FLAGS = {
    "enabled",
    "prescale_gradients",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    *_OPTIMIZER_PARAMS[2:],
}
"""Keys that are true or false wherever they stand; python would take "false" for true."""


@dataclass(frozen=True)
class DeepSpeedFile:
    """A configuration file that was read and found right; `content` is still as the user wrote it."""

    source: str
    """What to call it: a packaged name, or the path."""
    content: dict[str, Any]

    def integer(self, key: str) -> int | None:
        """Return a batch size or an accumulation, None where the file has none."""
        value = self.content.get(key)
        return None if value is None else int(value)

    @property
    def stage(self) -> int:
        """ZeRO stage, 0 to 3."""
        return int(self.content.get("zero_optimization", {}).get("stage", 0))

    @property
    def precision(self) -> str | None:
        """bf16, fp16, fp32 or `bfloat16 autocast` where the file decides it, else None."""
        return precision(self.content)


def read_ds_config(name: str) -> DeepSpeedFile:
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
            raise UsageError(
                f"--ds-config {name!r} is neither a file nor one of "
                f"{', '.join(names)}{_did_you_mean(stem, names)}"
            )
        path, source = names[stem], f"{stem}.json"
    try:
        content = json.loads(path.read_text("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, OSError, RecursionError) as error:
        raise UsageError(f"{source} is not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(
            f"{source} holds a {type(content).__name__}; a DeepSpeed configuration is a JSON object"
        )
    check_ds_config(content, source)
    return DeepSpeedFile(source, content)


def check_ds_config(content: Mapping[str, Any], source: str) -> None:
    """Check what can be known without the command line and the machine; see `read_ds_config`."""
    _check_values(content, source, ())
    models = _model_sections()
    for key, value in content.items():
        if key in _OURS:
            raise UsageError(f"{source} has {key!r}, which would be overridden: {_OURS[key]}")
        if key in models:
            _check_by_model(models[key], value, key, source)
        elif key in _SECTIONS:
            _check_keys(value, _SECTIONS[key], key, source)
        else:
            known = [*_SECTIONS, *models]
            raise UsageError(
                f"{source} has {key!r}, which coma does not know and DeepSpeed would ignore or misuse"
                f"{_did_you_mean(key, known)}"
            )
    for key in (BATCH_KEY, MICRO_KEY, ACCUMULATION_KEY, "steps_per_print"):
        value = content.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UsageError(
                f"{source}: {key!r} is {json.dumps(value)}; it must be a whole number of at least 1"
            )
    clipping = content.get("gradient_clipping", 1.0)
    if not _is_number(clipping) or clipping < 0:
        raise UsageError(
            f"{source}: 'gradient_clipping' is {json.dumps(clipping)}; it must be a norm, 0 or more"
        )
    factor = content.get("gradient_predivide_factor", 1.0)
    if not _is_number(factor) or factor <= 0:
        raise UsageError(
            f"{source}: 'gradient_predivide_factor' is {json.dumps(factor)}; it must be a number above 0"
        )
    check_precision(content, source)
    _check_optimizer(content.get("optimizer", {}), source)
    check_offload(content, source)


def complete(
    file: DeepSpeedFile,
    *,
    batch_size: int,
    micro_batch_size: int,
    accumulation: int,
    precision: str,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.95),
) -> dict[str, Any]:
    """Return the file's content with what coma decides filled in: what `deepspeed.initialize` is given."""
    content: dict[str, Any] = {
        "zero_optimization": {"stage": 0},
        "gradient_clipping": 1.0,
        "steps_per_print": 1_000_000_000,
        **with_autocast_dtype(file.content),
        BATCH_KEY: batch_size,
        MICRO_KEY: micro_batch_size,
        ACCUMULATION_KEY: accumulation,
    }
    if file.precision is None:
        content["bf16"] = {"enabled": precision == "bf16"}
    optimizer = file.content.get("optimizer", {})
    content["zero_optimization"] = with_swap_buffers(content["zero_optimization"], optimizer)
    # torch's own AdamW: DeepSpeed's is compiled at the first start, which needs a matching CUDA toolkit.
    params = {
        "betas": list(betas),
        "torch_adam": True,
        "lr": 0.0,  # it is set before each step, and DeepSpeed takes one with empty gradients before the first
        **optimizer.get("params", {}),
        "weight_decay": weight_decay,
    }
    if params["torch_adam"] and not params.get("foreach"):
        params.setdefault("fused", True)  # one pass over memory, on a CPU as well
    content["optimizer"] = {"type": optimizer.get("type", "AdamW"), "params": params}
    return content


def _check_optimizer(optimizer: Any, source: str) -> None:
    kind = optimizer.get("type", "AdamW")
    if str(kind).lower() not in ("adam", "adamw"):
        raise UsageError(f"{source}: optimizer.type is {kind!r}; coma trains with AdamW")
    params = optimizer.get("params", {})
    for name in ("lr", "weight_decay"):
        key = f"optimizer.params.{name}"
        if isinstance(params, dict) and name in params:
            raise UsageError(f"{source} has {key!r}, which would be overridden: {_OURS[key]}")
    _check_keys(params, _OPTIMIZER_PARAMS, "optimizer.params", source)
    kernels = [name for name in ("foreach", "fused") if params.get(name)]
    if kernels and (len(kernels) == 2 or not params.get("torch_adam", True)):
        raise UsageError(
            f"{source}: 'optimizer.params.{kernels[0]}' goes with \"torch_adam\": true, and without the other of "
            "'foreach' and 'fused': delete it"
        )
    betas, eps = params.get("betas", [0.9, 0.95]), params.get("eps", 1e-8)
    if not (
        isinstance(betas, list)
        and len(betas) == 2
        and all(_is_number(beta) and 0 <= beta < 1 for beta in betas)
    ):
        raise UsageError(
            f"{source}: 'optimizer.params.betas' is {json.dumps(betas)}; it must be two numbers from 0 to below 1"
        )
    if not _is_number(eps) or eps <= 0:
        raise UsageError(
            f"{source}: 'optimizer.params.eps' is {json.dumps(eps)}; it must be a number above 0"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _model_sections() -> dict[str, Any]:
    """Return the sections that DeepSpeed describes by a pydantic model."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return {
        "zero_optimization": DeepSpeedZeroConfig,
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "comms_logger": CommsLoggerConfig,
        "tensorboard": TensorBoardConfig,
        "wandb": WandbConfig,
        "csv_monitor": CSVConfig,
        "comet": CometConfig,
    }


def _check_by_model(model: Any, section: Any, name: str, source: str) -> None:
    from pydantic import ValidationError

    if not isinstance(section, dict):
        raise UsageError(f"{source}: {name!r} is {json.dumps(section)}; it must be a JSON object")
    try:
        validated = model.model_validate(section)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([name, *map(str, first["loc"])])
        if first["type"] == "extra_forbidden":
            hint = _did_you_mean(str(first["loc"][-1]), _keys_at(model, first["loc"][:-1]))
            raise UsageError(f"{source} has {key!r}, which DeepSpeed does not know{hint}") from None
        raise UsageError(f"{source}: {key!r} is {json.dumps(first['input'])}: {first['msg']}") from None
    _check_flags(validated, section, name, source)


def _check_flags(validated: Any, section: Mapping[str, Any], name: str, source: str) -> None:
    """Refuse true and false where pydantic made a number of them."""
    for field, about in type(validated).model_fields.items():
        key = field if field in section else about.alias or field
        given, taken = section.get(key), getattr(validated, field)
        if isinstance(given, bool) and not isinstance(taken, bool):
            raise UsageError(f"{source}: '{name}.{key}' is {json.dumps(given)}; it must be a number")
        if isinstance(given, Mapping) and hasattr(taken, "model_fields_set"):
            _check_flags(taken, given, f"{name}.{key}", source)


def _keys_at(model: Any, location: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the (nested) pydantic model at `location`, by alias where it has one."""
    for part in location:
        field = model.model_fields.get(part)
        inner = getattr(field, "annotation", None)
        model = next(
            (kind for kind in (inner, *getattr(inner, "__args__", ())) if hasattr(kind, "model_fields")), None
        )
        if model is None:
            return []
    return [field.alias or name for name, field in model.model_fields.items()]


def _check_keys(section: Any, keys: tuple[str, ...] | None, name: str, source: str) -> None:
    if keys is None:
        if isinstance(section, dict | list):
            raise UsageError(f"{source}: {name!r} is {json.dumps(section)}; it must be a plain value")
        return
    if not isinstance(section, dict):
        raise UsageError(f"{source}: {name!r} is {json.dumps(section)}; it must be a JSON object")
    for key in section:
        if key not in keys:
            raise UsageError(
                f"{source} has '{name}.{key}', which DeepSpeed does not know{_did_you_mean(key, list(keys))}"
            )


def _check_values(value: Any, source: str, path: tuple[str, ...]) -> None:
    """Refuse at any depth: "auto", numbers that no float holds, and what is not true or false for a flag."""
    if value == "auto":
        raise UsageError(
            f"{source}: '{'.'.join(path)}' is \"auto\", which only other frameworks fill in: "
            "delete the key and coma derives it, or give a value"
        )
    if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
        raise UsageError(f"{source}: '{'.'.join(path)}' is {json.dumps(value)}; it must be a finite number")
    if path and path[-1] in _FLAGS and not isinstance(value, bool | None):
        raise UsageError(f"{source}: '{'.'.join(path)}' is {json.dumps(value)}; it must be true or false")
    items = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in items:
        _check_values(inner, source, (*path, str(key)))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return content


def _did_you_mean(word: str, words: Iterable[str]) -> str:
    hint = did_you_mean(word, words)
    return f"; {hint}" if hint else ""
