"""Locate a parameter's optimizer state at each ZeRO stage, and save and restore it: Adam's moments, step counters.

    stage 0         every process holds the state of every parameter
    stages 1 and 2  a process holds a stretch of all parameters laid end to end
    stage 3         a process holds a stretch of each parameter

A partition is such a stretch. State that is saved by partition can be loaded into other partitions: those of another
number of processes, or of another stage. DeepSpeed's own files can't (0.19 refuses at stages 1 and 2, and at stage 3
its universal format gives the parts of a group one step counter and every group the first one's weight decay).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coma.errors import ComaError
from coma.training.engine.nvme import in_memory

_STEP = "step"
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
"""State that an NVMe offload moves together with the weights."""


@dataclass(frozen=True, eq=False)
class Partition:
    """The part of a parameter whose optimizer state a process holds.

    `count` elements from `start` of the flattened parameter, which lie at `offset` in `flat`.
    """

    name: str
    start: int
    count: int
    flat: Tensor
    """The optimizer's own float32 tensor, the key of its state."""
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """Return the view of this partition in a tensor that is laid out as `flat`."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.count]


def partitions(engine: Any) -> list[Partition]:
    """Return the partitions of this process, without padding."""
    return [partition for partition in _partitions(engine) if partition.count > 0]


def _by_flat(held: Iterable[Partition]) -> list[list[Partition]]:
    """Group partitions by the optimizer's tensor that they lie in."""
    groups: dict[int, list[Partition]] = defaultdict(list)
    for partition in held:
        groups[id(partition.flat)].append(partition)
    return list(groups.values())


def _partitions(engine: Any) -> Iterator[Partition]:
    optimizer = engine.optimizer
    copies = _float32_copies(optimizer)
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_id"):  # stage 3
            group, offset, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = count * optimizer._get_param_partition_rank(parameter)
            flat = optimizer.fp32_partitioned_groups_flat[group]
            yield Partition(name, start, min(count, parameter.ds_numel - start), flat, offset)
        elif hasattr(parameter, "_hp_mapping"):  # stages 1 and 2; None where another process holds it
            if (mapping := parameter._hp_mapping) is not None:
                here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
                (flat,) = engine.basic_optimizer.param_groups[mapping.param_group_index]["params"]
                yield Partition(name, there.start, here.numel, flat, here.start)
        else:
            flat, offset = copies.get(id(parameter), (parameter, 0))
            yield Partition(name, 0, parameter.numel(), flat, offset)


def _float32_copies(optimizer: Any) -> dict[int, tuple[Tensor, int]]:
    """Return (float32 tensor, offset in it) by the parameter's id, at stage 0 in bf16 and fp16."""
    copies: dict[int, tuple[Tensor, int]] = {}
    halves = getattr(optimizer, "fp16_groups", [])
    for group, fulls in zip(halves, getattr(optimizer, "fp32_groups", []), strict=False):
        copies |= {id(half): (full, 0) for half, full in zip(group, fulls, strict=True)}
    for group, full in zip(halves, getattr(optimizer, "fp32_groups_flat", []), strict=False):
        offset = 0
        for half in group:
            copies[id(half)] = (full, offset)
            offset += half.numel()
    return copies


def optimizer_state(engine: Any) -> dict[str, Tensor]:
    """Return this process's share of the optimizer state, copied to the CPU, by `state/parameter@start`.

    No element is in the share of two processes.

    Raises:
        ComaError: the drive of an NVMe offload fails.
    """
    engine.swap_folder.sync()
    held = partitions(engine)
    if not engine.zero_optimization():
        held = [_share(partition, engine.global_rank, engine.world_size) for partition in held]
    state: dict[str, Tensor] = {}
    for group in _by_flat(partition for partition in held if partition.count > 0):
        flat = group[0].flat
        with in_memory(engine, flat):
            for kind, value in engine.basic_optimizer.state.get(flat, {}).items():
                for partition in group:
                    state[f"{kind}/{partition.name}@{partition.start}"] = (
                        torch.tensor(float(value)) if kind == _STEP else partition.of(value).clone().cpu()
                    )
    return state


def _share(partition: Partition, rank: int, size: int) -> Partition:
    """Return a rank's share of a partition that every process holds."""
    start, end = partition.count * rank // size, partition.count * (rank + 1) // size
    return replace(partition, start=partition.start + start, offset=partition.offset + start, count=end - start)


def restore_optimizer(engine: Any, weights: Mapping[str, Tensor], files: Sequence[Path]) -> None:
    """Restore this process's partitions: float32 copies from `weights`, optimizer state from all processes' `files`.

    Args:
        engine: DeepSpeed's, of any stage and any number of processes.
        weights: whole parameters, by name.
        files: what every process saved of `optimizer_state`.

    Raises:
        ComaError: the files lack a part of the state.
    """
    saved = _SavedState(files)
    optimizer = engine.basic_optimizer
    as_tensor = type(optimizer).__module__.startswith("torch.")
    fused = as_tensor and optimizer.defaults.get("fused")
    for group in _by_flat(partitions(engine)):
        flat = group[0].flat
        with in_memory(engine, flat, changed=True):
            state: dict[str, Any] = {}
            for partition in group:
                whole = weights[partition.name].reshape(-1)
                partition.of(flat).copy_(whole[partition.start : partition.start + partition.count])
                for kind in saved.kinds(partition.name):
                    values = saved.read(kind, partition)
                    if kind == _STEP:
                        # each flat tensor has a counter of its own: Adam counts it up in place
                        step = max(float(values), float(state.get(_STEP, 0)))
                        device = flat.device if fused else None  # where torch's fused kernel wants it
                        state[_STEP] = torch.tensor(step, device=device) if as_tensor else int(step)
                    else:
                        if kind not in state:
                            state[kind] = torch.zeros_like(flat, dtype=values.dtype, requires_grad=False)
                            state[kind].swappable = kind in _MOMENTS
                        partition.of(state[kind]).copy_(values)
            if state:
                optimizer.state[flat] = state
            else:
                optimizer.state.pop(flat, None)  # saved before the first step that was not skipped


class _SavedState:
    """The optimizer state in the files of all processes, taken together."""

    def __init__(self, files: Sequence[Path]) -> None:
        from safetensors import safe_open

        # By parameter and kind of state: (start of the stretch, open file, key in it).
        self._at: dict[str, dict[str, list[tuple[int, Any, str]]]] = defaultdict(lambda: defaultdict(list))
        for path in files:
            file: Any = safe_open(path, framework="pt")
            for key in file.keys():  # noqa: SIM118, it is no dictionary
                kind, place = key.split("/", 1)
                name, start = place.rsplit("@", 1)
                self._at[name][kind].append((int(start), file, key))

    def kinds(self, name: str) -> list[str]:
        """Return the kinds of state that were saved of a parameter."""
        return list(self._at[name])

    def read(self, kind: str, wanted: Partition) -> Tensor:
        """Return a partition's state, or the step counter of its parameter."""
        stored = self._at[wanted.name][kind]
        if kind == _STEP:
            return torch.stack([file.get_tensor(key) for _, file, key in stored]).max()
        parts: list[Tensor] = []
        reached, until = wanted.start, wanted.start + wanted.count
        for first, file, key in sorted(stored, key=lambda entry: entry[0]):
            part = file.get_slice(key)
            end = min(first + part.get_shape()[0], until)
            if first <= reached < end:
                parts.append(part[reached - first : end - first])
                reached = end
        if reached < until:
            raise ComaError(f"the checkpoint holds {kind} of {wanted.name} up to element {reached} only")
        return torch.cat(parts)
