"""Checks of a DeepSpeed configuration: what is unknown, ignored, overridden or untested is refused by name.

DeepSpeed ignores a misspelt top-level key, drops `"auto"` and lets a `scheduler` overwrite the learning rate,
all in silence.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from coma.errors import UsageError, did_you_mean
from coma.runs.lines import is_number
from coma.training.config.ds_offload import check_offload
from coma.training.config.ds_precision import check_precision, must_be

BATCH_KEY = "train_batch_size"
MICRO_KEY = "train_micro_batch_size_per_gpu"
ACCUMULATION_KEY = "gradient_accumulation_steps"

_MODELS = ("zero_optimization", "bf16", "fp16")
"""The sections that DeepSpeed describes by a pydantic model (`_model`)."""
_OTHERS: dict[str, tuple[str, ...] | None] = {
    BATCH_KEY: None,
    MICRO_KEY: None,
    ACCUMULATION_KEY: None,
    "gradient_clipping": None,
    "communication_data_type": None,
    "steps_per_print": None,
    "wall_clock_breakdown": None,
    "optimizer": ("type", "params"),
    "torch_autocast": ("enabled", "dtype"),
}
"""The other keys that coma takes: a tuple holds the keys of a section, None stands for a plain value."""
_OPTIMIZER_FLAGS = ("torch_adam", "foreach", "fused", "adam_w_mode", "bias_correction", "amsgrad")
_OPTIMIZER_PARAMS = ("betas", "eps", *_OPTIMIZER_FLAGS)
_FLAGS = {"enabled", "wall_clock_breakdown", *_OPTIMIZER_FLAGS}
"""Keys that are true or false wherever they stand; Python would take "false" for true."""

_LOGGED = "coma logs to metrics.jsonl and TensorBoard itself, and to other trackers with --log-to: delete it"
_SILENCED = "coma silences what DeepSpeed prints, and coma bench step measures a step: delete it"
_NO_EFFECT = "it changes nothing for AdamW, with which coma trains: delete it"
_UNTESTED = "it changes numbers in ways that are not tested with coma: delete it"
_UNSAVED = "coma cannot save an optimizer that is kept so: use zero3_offload, which keeps it in the host's memory"
_REFUSED = {
    "aio": "coma reads and writes the files of an offload itself: delete it",
    "scheduler": "coma sets the learning rate before each step: delete it, and use --base-lr and --warmup-epochs",
    "optimizer.params.lr": "coma sets the learning rate before each step: delete it, and use --base-lr",
    "optimizer.params.weight_decay": "coma sets it: delete it, and use --weight-decay",
    **dict.fromkeys(("tensorboard", "wandb", "csv_monitor", "comet"), _LOGGED),
    **dict.fromkeys(("comms_logger", "flops_profiler", "memory_breakdown", "dump_state"), _SILENCED),
    **dict.fromkeys(("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"), _NO_EFFECT),
    **dict.fromkeys(("data_types", "prescale_gradients", "gradient_predivide_factor"), _UNTESTED),
    "torch_autocast.lower_precision_safe_modules": _UNTESTED,
    "zero_optimization.mics_shard_size": _UNTESTED,
    "zero_optimization.zero_hpz_partition_size": _UNTESTED,
    "zero_optimization.zero_quantized_weights": _UNTESTED,
    "zero_optimization.zero_quantized_gradients": _UNTESTED,
    "zero_optimization.zenflow": _UNSAVED,
    "zero_optimization.offload_optimizer.super_offload": _UNSAVED,
}
"""Keys that DeepSpeed knows and coma does not take, with the reason and the way out."""
TOP_LEVEL_KEYS = frozenset((*_MODELS, *_OTHERS, *(key for key in _REFUSED if "." not in key)))
"""Keys by which a DeepSpeed configuration is told from other files."""


def check(content: Mapping[str, Any], source: str) -> Any:
    """Check what can be known without the command line and the machine.

    Returns:
        DeepSpeed's own description of `zero_optimization`, with its defaults.
    """
    _check_values(content, source, ())
    for key, value in content.items():
        if key in _MODELS:
            _validate(key, value, source)
        elif key in _OTHERS:
            _check_keys(value, _OTHERS[key], key, source)
        else:
            hint = _did_you_mean(key, [*_OTHERS, *_MODELS])
            raise UsageError(
                f"{source} has {key!r}, which coma does not know and DeepSpeed would ignore or misuse{hint}"
            )
    for key in (BATCH_KEY, MICRO_KEY, ACCUMULATION_KEY, "steps_per_print"):
        value = content.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise must_be("a whole number of at least 1", key, value, source)
    clipping = content.get("gradient_clipping", 1.0)
    if not is_number(clipping) or clipping < 0:
        raise must_be("a norm, 0 or more", "gradient_clipping", clipping, source)
    check_precision(content, source)
    _check_optimizer(content.get("optimizer", {}), source)
    check_offload(content, source)
    return _validate("zero_optimization", content.get("zero_optimization", {}), source)


def _check_optimizer(optimizer: Any, source: str) -> None:
    kind = optimizer.get("type", "AdamW")
    if str(kind).lower() not in ("adam", "adamw"):
        raise UsageError(f"{source}: optimizer.type is {kind!r}; coma trains with AdamW")
    params = optimizer.get("params", {})
    _check_keys(params, _OPTIMIZER_PARAMS, "optimizer.params", source)
    kernels = [name for name in ("foreach", "fused") if params.get(name)]
    if kernels and (len(kernels) == 2 or not params.get("torch_adam", True)):
        raise UsageError(
            f"{source}: 'optimizer.params.{kernels[0]}' goes with \"torch_adam\": true, and without the other of "
            "'foreach' and 'fused': delete it"
        )
    for name in ("adam_w_mode", "bias_correction"):
        if params.get(name, True) is not True:
            raise must_be("true, as it is in AdamW: delete it", f"optimizer.params.{name}", params[name], source)
    if params.get("amsgrad") and not params.get("torch_adam", True):
        raise UsageError(f"{source}: 'optimizer.params.amsgrad' goes with \"torch_adam\": true: delete one of them")
    betas, eps = params.get("betas", [0.9, 0.95]), params.get("eps", 1e-8)
    if not isinstance(betas, list) or len(betas) != 2 or not all(is_number(b) and 0 <= b < 1 for b in betas):
        raise must_be("two numbers from 0 to below 1", "optimizer.params.betas", betas, source)
    if not is_number(eps) or eps <= 0:
        raise must_be("a number above 0", "optimizer.params.eps", eps, source)


def _model(name: str) -> Any:
    """Return the pydantic model by which DeepSpeed describes a section of `_MODELS`."""
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    models = (DeepSpeedZeroConfig, DeepSpeedBF16Config, DeepSpeedFP16Config)
    return dict(zip(_MODELS, models, strict=True))[name]


def _validate(name: str, section: Any, source: str) -> Any:
    """Return a section as its model has it, with DeepSpeed's defaults, or raise UsageError."""
    from pydantic import ValidationError

    if not isinstance(section, dict):
        raise must_be("a JSON object", name, section, source)
    model = _model(name)
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
    return validated


def _check_flags(validated: Any, section: Mapping[str, Any], name: str, source: str) -> None:
    """Refuse names that DeepSpeed has given up, and true and false where pydantic made a number of them."""
    for field, about in type(validated).model_fields.items():
        key = field if field in section else about.alias or field
        if (about.json_schema_extra or {}).get("deprecated"):
            if key in section:
                new = about.json_schema_extra["new_param"]
                raise UsageError(f"{source} has '{name}.{key}', an old name: delete it, and write {new!r} in its place")
            continue
        given, taken = section.get(key), getattr(validated, field)
        if isinstance(given, bool) and not isinstance(taken, bool):
            raise must_be("a number", f"{name}.{key}", given, source)
        if isinstance(given, Mapping) and hasattr(taken, "model_fields_set"):
            _check_flags(taken, given, f"{name}.{key}", source)


def _keys_at(model: Any, location: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the (nested) pydantic model at `location`, by alias where it has one."""
    for part in location:
        field = model.model_fields.get(part)
        inner = getattr(field, "annotation", None)
        model = next((kind for kind in (inner, *getattr(inner, "__args__", ())) if hasattr(kind, "model_fields")), None)
        if model is None:
            return []
    return [field.alias or name for name, field in model.model_fields.items()]


def _check_keys(section: Any, keys: tuple[str, ...] | None, name: str, source: str) -> None:
    if keys is None:
        if isinstance(section, dict | list):
            raise must_be("a plain value", name, section, source)
        return
    if not isinstance(section, dict):
        raise must_be("a JSON object", name, section, source)
    for key in section:
        if key not in keys:
            raise UsageError(f"{source} has '{name}.{key}', which coma does not know{_did_you_mean(key, list(keys))}")


def _check_values(value: Any, source: str, path: tuple[str, ...]) -> None:
    """Refuse keys of `_REFUSED`, "auto" in a list, numbers that no float holds, and flags that are no booleans."""
    key = ".".join(path)
    if key in _REFUSED:
        raise UsageError(f"{source} has {key!r}, which coma does not take: {_REFUSED[key]}")
    if value == "auto":
        raise UsageError(f'{source}: {key!r} is "auto", which stands for a whole key only: give a value')
    if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
        raise must_be("a finite number", key, value, source)
    if path and path[-1] in _FLAGS and not isinstance(value, bool | None):
        raise must_be("true or false", key, value, source)
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for part, inner in items:
        _check_values(inner, source, (*path, str(part)))


def _did_you_mean(word: str, words: Iterable[str]) -> str:
    hint = did_you_mean(word, words)
    return f"; {hint}" if hint else ""
