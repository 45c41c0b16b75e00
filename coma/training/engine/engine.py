"""DeepSpeed's engine: making it, taking a step, and getting weights into and out of it at any ZeRO stage."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

from coma.errors import UsageError
from coma.training.config.ds_precision import precision_of
from coma.training.config.resolve import ResolvedRun
from coma.training.engine.nvme import SwapFolder, gather_from_nvme, replaced_async_io
from coma.training.engine.optimizer_state import partitions
from coma.training.processes.stdout import quiet_stdout

_LINEAR = torch.nn.functional.linear
"""torch's own function, which stage 3 replaces in the whole process and never restores."""
_CROP_SIZES = 64
"""Crop sizes that a compiled network may see."""
_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def check_half_precision(resolved: ResolvedRun) -> None:
    """Raise UsageError if the device does not compute in the run's half precision, as not every CPU does in fp16."""
    accelerator = deepspeed.get_accelerator()
    supported = {"fp16": accelerator.is_fp16_supported, "bf16": accelerator.is_bf16_supported}
    if not supported.get(resolved.precision, lambda: True)():
        in_file = precision_of(resolved.deepspeed.content) is not None
        asking = resolved.ds_config if in_file else f"--precision {resolved.precision}"
        way = f"take {resolved.precision!r} out of the file" if in_file else "use --precision fp32"
        raise UsageError(
            f"{asking} asks for {resolved.precision}, which this {resolved.device} does not compute in: {way}, or "
            "train on a device that does"
        )


def make_engine(
    model: nn.Module,
    resolved: ResolvedRun,
    *,
    groups: Sequence[dict[str, Any]] | None = None,
    compile_model: bool = False,
) -> Any:
    """Wrap a model in DeepSpeed's engine, its parameters in `groups` or else in `parameter_groups`; collective."""
    model.to(resolved.device)
    folder = SwapFolder(resolved.deepspeed)
    try:
        with replaced_async_io(), quiet_stdout():
            engine, *_ = deepspeed.initialize(
                model=model,
                model_parameters=list(groups or parameter_groups(model, resolved.deepspeed.weight_decay)),
                config=folder.config.to_json(),
            )
    except BaseException:
        folder.remove()
        raise
    engine.swap_folder = folder
    if not engine.zero_optimization():
        engine.basic_optimizer.state.clear()  # in half precision it has counted a step already
    if compile_model:
        # One graph a crop size: with sizes as symbols the windows cannot be traced.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _CROP_SIZES)
        engine.compile(compile_kwargs={"dynamic": False})  # before initialize it would rename every parameter
    return engine


def dispose(engine: Any) -> None:
    """Free an engine's memory and files, so that another one can be made in this process."""
    with quiet_stdout():
        engine.destroy()
    _forget_stage3(engine.module)
    engine.swap_folder.remove()
    torch.nn.functional.linear = _LINEAR


def _forget_stage3(model: nn.Module) -> None:
    """Remove what DeepSpeed's ZeRO stage 3 keeps of each engine: memory, threads and sockets would stay with it."""
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    stack = getattr(parameter_offload, "FWD_MODULE_STACK", [])
    stack[:] = [module for module in stack if module is not model]
    released = getattr(PartitionedParameterCoordinator, "_PartitionedParameterCoordinator__params_to_release", None)
    for cached in inspect.getclosurevars(released).nonlocals.values() if released else ():  # its decorator's function
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimizer's groups: matrices have weight decay, vectors and `model.no_weight_decay()` have none."""
    kept = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim >= 2 and name not in kept].append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0}
        for decays, parameters in groups.items()
        if parameters
    ]


def set_learning_rate(engine: Any, lr: float) -> None:
    """Set the learning rate of the coming step; a parameter group may scale it by its `lr_scale`."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def optimizer_step(engine: Any) -> tuple[float, bool]:
    """Apply the gradients; collective. Return their norm before clipping, and whether they were applied.

    A step with a gradient that is not finite changes nothing. DeepSpeed sees to that itself, except at stage
    0 in single precision, where the optimizer is torch's own.
    """
    plain = not (engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled())
    if plain:
        gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if math.isfinite(norm):
            engine.step()
            return norm, True
        engine.module.zero_grad(set_to_none=True)  # AdamW passes over parameters without a gradient
        engine.clip_fp32_gradients = lambda: None  # which would stumble over there being none
        engine.step()
        del engine.clip_fp32_gradients
        return norm, False
    skipped = engine.skipped_steps
    engine.step()
    norm = engine.get_global_grad_norm()
    return float("nan") if norm is None else float(norm), engine.skipped_steps == skipped


def full_weights(engine: Any) -> dict[str, Tensor]:
    """Collect the whole model in float32 on the CPU; collective, empty on every rank but 0.

    The optimizer's float32 copy where there is one, the parameter itself otherwise.
    """
    module: nn.Module = engine.module
    partitioned = engine.zero_optimization()
    copies = {} if partitioned else {each.name: each.of(each.flat) for each in partitions(engine)}
    on_nvme = gather_from_nvme(engine)
    weights: dict[str, Tensor] = {}
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        full = on_nvme.get(name)
        if full is None and partitioned:
            full = safe_get_full_fp32_param(parameter)
        if full is None:
            full = copies.get(name, parameter)
        if engine.global_rank == 0:
            shape = getattr(parameter, "ds_shape", parameter.shape)  # stage 3 leaves an empty tensor behind
            weights[name] = full.detach().reshape(shape).float().cpu().clone()
    if engine.global_rank == 0:
        buffers = {name: value for name, value in module.state_dict().items() if name not in names}
        for name, value in buffers.items():
            weights[name] = (value.float() if value.is_floating_point() else value).detach().cpu()
    return weights


def set_weights(engine: Any, weights: Mapping[str, Tensor]) -> None:
    """Load the whole parameters and buffers of `full_weights` into the network, on every rank; collective.

    The optimizer's float32 copies stay as they are.
    """
    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):  # idle below stage 3
                parameter.copy_(weights[name])
        for name, buffer in engine.module.named_buffers():
            if name in weights:
                buffer.copy_(weights[name])


def loss_scale(engine: Any) -> dict[str, float]:
    """Return the state of fp16's dynamic loss scale; empty in other precisions."""
    if not engine.fp16_enabled():
        return {}
    scaler = _scaler(engine)
    return {name: getattr(scaler, name) for name in _SCALER_FIELDS if hasattr(scaler, name)}


def restore_loss_scale(engine: Any, saved: Mapping[str, float]) -> None:
    """Restore what `loss_scale` returned; fields that another stage's scaler does not have are left out."""
    for name, value in saved.items():
        if hasattr(_scaler(engine), name):
            setattr(_scaler(engine), name, value)


def _scaler(engine: Any) -> Any:
    optimizer = engine.optimizer
    return getattr(optimizer, "loss_scale_config", None) or optimizer.loss_scaler


def buildable_kernels() -> list[str]:
    """Return the names of DeepSpeed's own kernels that this machine's compilers and libraries could compile."""
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    kernels = {name: builder for name, builder in ALL_OPS.items() if name != "deepspeed_not_implemented"}
    return sorted(name for name, builder in kernels.items() if builder.is_compatible(verbose=False))
