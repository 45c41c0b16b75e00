"""Where the optimizer keeps a parameter: its float32 copy and Adam's moments, cut differently at each ZeRO stage.

    stage 0         every process holds the whole of every parameter
    stages 1 and 2  a process holds a stretch of all parameters laid end to end
    stage 3         a process holds a stretch of each parameter

A piece is such a stretch. What is saved piece by piece can be loaded into other pieces: those of another number
of processes, or of another stage. DeepSpeed's own files can't (0.19 refuses at stages 1 and 2, and at stage 3 its
universal format gives the parts of a group one step counter and every group the first one's weight decay).
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
"""What goes to a drive with the weights, where they go."""


@dataclass(frozen=True, eq=False)
class Piece:
    """`count` elements of a parameter, from `start` of it flattened, that lie at `offset` in `flat`."""

    name: str
    start: int
    count: int
    flat: Tensor
    """The optimizer's own tensor, by which it finds its state."""
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """Return the view of this piece in a tensor that is laid out as `flat`."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.count]


def pieces(engine: Any) -> list[Piece]:
    """Return what this process holds, without padding."""
    return [piece for piece in _pieces(engine) if piece.count > 0]


def by_flat(held: Iterable[Piece]) -> list[list[Piece]]:
    """Put together the pieces of each of the optimizer's tensors."""
    found: dict[int, list[Piece]] = defaultdict(list)
    for piece in held:
        found[id(piece.flat)].append(piece)
    return list(found.values())


def _pieces(engine: Any) -> Iterator[Piece]:
    optimizer = engine.optimizer
    copies = _copies(optimizer)
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_id"):  # stage 3
            group, offset, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = count * optimizer._get_param_partition_rank(parameter)
            flat = optimizer.fp32_partitioned_groups_flat[group]
            yield Piece(name, start, min(count, parameter.ds_numel - start), flat, offset)
        elif hasattr(parameter, "_hp_mapping"):  # stages 1 and 2; None where the piece lies elsewhere
            if (mapping := parameter._hp_mapping) is not None:
                here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
                (flat,) = engine.basic_optimizer.param_groups[mapping.param_group_index]["params"]
                yield Piece(name, there.start, here.numel, flat, here.start)
        else:
            flat, offset = copies.get(id(parameter), (parameter, 0))
            yield Piece(name, 0, parameter.numel(), flat, offset)


def _copies(optimizer: Any) -> dict[int, tuple[Tensor, int]]:
    """At stage 0 in bf16 and fp16: (float32 tensor, offset in it) by the parameter's id."""
    found: dict[int, tuple[Tensor, int]] = {}
    halves = getattr(optimizer, "fp16_groups", [])
    for group, fulls in zip(halves, getattr(optimizer, "fp32_groups", []), strict=False):
        found |= {id(half): (full, 0) for half, full in zip(group, fulls, strict=True)}
    for group, full in zip(halves, getattr(optimizer, "fp32_groups_flat", []), strict=False):
        offset = 0
        for half in group:
            found[id(half)] = (full, offset)
            offset += half.numel()
    return found


def optimizer_state(engine: Any) -> dict[str, Tensor]:
    """Return copies of this process's share of Adam's state, on the CPU; nothing is held twice in the group.

    Raises:
        ComaError: a drive that it is offloaded to fails.
    """
    engine.swap_folder.sync()
    held = pieces(engine)
    if not engine.zero_optimization():
        held = [_cut(piece, engine.global_rank, engine.world_size) for piece in held]
    state: dict[str, Tensor] = {}
    for group in by_flat(piece for piece in held if piece.count > 0):
        flat = group[0].flat
        with in_memory(engine, flat):
            for kind, value in engine.basic_optimizer.state.get(flat, {}).items():
                for piece in group:
                    own = torch.tensor(float(value)) if kind == _STEP else piece.of(value).clone().cpu()
                    state[f"{kind}/{piece.name}@{piece.start}"] = own
    return state


def _cut(piece: Piece, rank: int, size: int) -> Piece:
    start, end = piece.count * rank // size, piece.count * (rank + 1) // size
    return replace(piece, start=piece.start + start, offset=piece.offset + start, count=end - start)


def restore_optimizer(engine: Any, weights: Mapping[str, Tensor], files: Sequence[Path]) -> None:
    """Put the whole parameters `weights` and what processes saved of `optimizer_state` into this one's pieces.

    Raises:
        ComaError: the files lack a part of it.
    """
    saved = _Saved(files)
    optimizer = engine.basic_optimizer
    as_tensor = type(optimizer).__module__.startswith("torch.")
    fused = as_tensor and optimizer.defaults.get("fused")
    for group in by_flat(pieces(engine)):
        flat = group[0].flat
        with in_memory(engine, flat, changed=True):
            state: dict[str, Any] = {}
            for piece in group:
                whole = weights[piece.name].reshape(-1)
                piece.of(flat).copy_(whole[piece.start : piece.start + piece.count])
                for kind in saved.kinds(piece.name):
                    values = saved.read(kind, piece.name, piece.start, piece.count)
                    if kind == _STEP:
                        # each flat tensor has a counter of its own: Adam counts it up in place
                        step = max(float(values), float(state.get(_STEP, 0)))
                        device = flat.device if fused else None  # where torch's fused kernel wants it
                        state[_STEP] = torch.tensor(step, device=device) if as_tensor else int(step)
                    else:
                        if kind not in state:
                            state[kind] = torch.zeros_like(flat, dtype=values.dtype, requires_grad=False)
                            state[kind].swappable = kind in _MOMENTS
                        piece.of(state[kind]).copy_(values)
            if state:
                optimizer.state[flat] = state
            else:
                optimizer.state.pop(flat, None)  # saved before the first step that was not skipped


class _Saved:
    """The state in all processes' files as one."""

    def __init__(self, files: Sequence[Path]) -> None:
        from safetensors import safe_open

        self._at: dict[str, dict[str, list[tuple[int, Any, str]]]] = defaultdict(lambda: defaultdict(list))
        for path in files:
            file: Any = safe_open(path, framework="pt")
            for key in file.keys():  # noqa: SIM118, it is no dictionary
                kind, place = key.split("/", 1)
                name, start = place.rsplit("@", 1)
                self._at[name][kind].append((int(start), file, key))

    def kinds(self, name: str) -> list[str]:
        return list(self._at[name])

    def read(self, kind: str, name: str, start: int, count: int) -> Tensor:
        stored = self._at[name][kind]
        if kind == _STEP:
            return torch.stack([file.get_tensor(key) for _, file, key in stored]).max()
        parts: list[Tensor] = []
        reached = start
        for first, file, key in sorted(stored, key=lambda entry: entry[0]):
            part = file.get_slice(key)
            end = min(first + part.get_shape()[0], start + count)
            if first <= reached < end:
                parts.append(part[reached - first : end - first])
                reached = end
        if reached < start + count:
            raise ComaError(f"the checkpoint holds {kind} of {name} up to element {reached} only")
        return torch.cat(parts)
