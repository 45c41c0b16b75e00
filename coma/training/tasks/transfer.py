"""Transfer of weights between backbones that differ in some sizes: what is taken, resized, left, and begun anew.

Patch embeddings and learned positions are resized as timm does (FlexiViT's pseudo-inverse, arXiv 2212.08013; bicubic).
Of a deeper backbone blocks are taken evenly, the first and the last among them. In a deeper one than the source, the
blocks between are copies whose outputs are zero at first, as in block expansion (arXiv 2401.02415), so that it computes
at the start what the source computes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import VisionTransformer, adapt_input_conv
from torch import Tensor, nn

from coma.errors import UsageError
from coma.model.dyvit import DyViT
from coma.model.encoders import has_own_positions
from coma.pipeline.preprocessing import DEFAULT, Preprocessing
from coma.training.tasks.pretrained import PretrainedBackbone, kind_of_blocks, windows_of

_SAME_NUMBERS = 1e-4
"""Differences of means and deviations, in deviations, that make none."""
LEAST_SHARE = 0.5
"""Share of a backbone's parameters that have to come from the source."""
_SHAPES = 3
_NAMES = (
    (r"(head|head_dist|head\.fc)\.", "classifier"),
    (r"attn_pool\.", "attention pooling"),
    (r"cls_token", "class token"),
    (r"reg_token", "registers"),
    (r"pos_embed|patch_embed\.position", "positions"),
    (r"patch_embed\.", "patch embedding"),
    (r"(fc_)?norm(_pre)?\.", "norms outside the blocks"),
)
_SPECIAL = ("class token", "registers", "positions", "layer scale")
"""What not every ViT has, and is named where it was taken."""
_CLASSIFIER = ("classifier", "attention pooling")
_OUTPUTS = ("attn.proj.", "mlp.fc2.")
"""Last layers of a block's two branches."""


@dataclass(frozen=True)
class Transfer:
    """What became of the weights of a source; each entry is worded for the console."""

    taken: str
    resized: list[str] = field(default_factory=list)
    pixels: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)


@torch.no_grad()
def transfer(
    backbone: nn.Module, source: PretrainedBackbone, flag: str, preprocessing: Preprocessing = DEFAULT
) -> Transfer:
    """Load those weights of the source into a backbone of `build_backbone` that fit it.

    Args:
        backbone: what to load them into; what does not fit stays as it is.
        source: the weights.
        flag: what the command calls the source, for errors.
        preprocessing: how the backbone's images are normalised.

    Raises:
        UsageError: the source is too different.
    """
    own = {name: value for name, value in backbone.state_dict().items() if _word(name) not in _CLASSIFIER}
    weights = dict(source.weights)
    resized: list[str] = []
    left = Counter(word for name in weights if (word := _word(name)) in _CLASSIFIER)
    weights = {name: value for name, value in weights.items() if _word(name) not in _CLASSIFIER}
    if not has_positions(backbone):
        weights.pop("pos_embed", None)  # of an export: fixed ones, which follow from the image's size
    if source.windows and windows_of(backbone) and source.windows != windows_of(backbone):
        raise UsageError(
            f"{flag} {source.path} has the windows {source.windows[-1]} in its last stage, and this network "
            f"{windows_of(backbone)[-1]}: take weights of a {type(backbone).__name__} with the same windows"
        )
    weights, blocks = _matched_depth(weights, own)
    resized += _resize_patches(backbone, weights, own, source.preprocessing.channels)
    resized += _resize_positions(backbone, weights, source)
    pixels = _fold_pixels(backbone, weights, source, preprocessing)
    resized += _fit_channels(backbone, weights, source.preprocessing.channels, preprocessing.channels)
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    _check_share(fitting, weights, own, source, flag)
    if source.kind and source.kind != kind_of_blocks(backbone):
        raise UsageError(
            f"{flag} {source.path} is {source.words}, whose blocks compute something else than this network's: give "
            f"--model {source.model}"
        )
    backbone.load_state_dict(fitting, strict=False)
    left.update(_word(name) for name in weights.keys() - fitting.keys())
    new = Counter(_word(name) for name in own.keys() - fitting.keys())
    taken, whole = (sum(value.numel() for value in each.values()) for each in (fitting, own))
    words = {_word(name) for name in fitting} if isinstance(backbone, VisionTransformer) else set()
    special = [word for word in _SPECIAL if word in words]
    return Transfer(
        taken=f"{len(fitting)} of the backbone's {len(own)} tensors, {taken / whole:.0%} of its parameters"
        + (f"; among them {', '.join(special)}" if special else ""),
        resized=resized,
        pixels=pixels,
        blocks=blocks,
        left=sorted(left),
        new=sorted(new),
    )


def has_positions(backbone: nn.Module) -> bool:
    """Whether a backbone's positions are among its weights."""
    return isinstance(backbone, DyViT) or has_own_positions(backbone)


def spread(have: int, want: int) -> list[int | None]:
    """Choose which of `have` blocks each of `want` blocks is made of; None: of the one before, with no effect at first.

    Both sequences keep their first and last block, as far as there are any, and the others are spread evenly.
    """
    few, many = min(have, want), max(have, want)
    places = [round(i * (many - 1) / max(1, few - 1)) for i in range(few)]
    if want <= have:
        return list(places)
    return [places.index(i) if i in places else None for i in range(want)]


def _matched_depth(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename blocks so that each sequence of them has as many as the network's; say which were taken."""
    matched = {name: value for name, value in weights.items() if _block(name) is None}
    told: list[str] = []
    for sequence in sorted({found[0] for name in own if (found := _block(name))}):
        have, want = (_depth(names, sequence) for names in (weights, own))
        if have == 0:
            continue
        origins, before = spread(have, want), 0
        for place, origin in enumerate(origins):
            before = before if origin is None else origin
            start = f"{sequence}{before}."
            for name, value in weights.items():
                if name.startswith(start):
                    rest = name.removeprefix(start)
                    silent = origin is None and rest.startswith(_OUTPUTS)
                    matched[f"{sequence}{place}.{rest}"] = torch.zeros_like(value) if silent else value
        if have != want:
            told.append(_told(sequence, origins, have))
    return matched, told


def _told(sequence: str, origins: Sequence[int | None], have: int) -> str:
    stage = re.match(r"stages\.(\d+)", sequence)
    where = f"stage {int(stage[1]) + 1}: " if stage else ""
    if None not in origins:
        chosen = ", ".join(str(each + 1) for each in origins if each is not None)
        return f"{where}{len(origins)} of {have} blocks: {chosen}"
    added = [str(place + 1) for place, origin in enumerate(origins) if origin is None]
    return f"{where}{have} blocks in {len(origins)}; without effect at first: {', '.join(added)}"


def _block(name: str) -> tuple[str, int] | None:
    """Return which sequence of blocks a tensor belongs to, and the block's place in it."""
    found = re.match(r"((?:stages\.\d+\.)?blocks\.)(\d+)\.", name)
    return None if found is None else (found[1], int(found[2]))


def _depth(names: Mapping[str, Tensor], sequence: str) -> int:
    return max((found[1] + 1 for name in names if (found := _block(name)) and found[0] == sequence), default=0)


_EMBEDDING = "patch_embed.proj.weight"


def _kernel(value: Tensor, channels: int) -> Tensor | None:
    """Return the weights of a patch embedding as those of a convolution, [D, channels, side, side]; None: it is none.

    A DyViT's are [D, side · side · channels].
    """
    if value.ndim == 4:
        return value
    side = round((value.shape[1] / channels) ** 0.5)
    if value.shape[1] != side**2 * channels:
        return None
    return value.reshape(len(value), side, side, channels).permute(0, 3, 1, 2)


def _as_before(kernel: Tensor, value: Tensor) -> Tensor:
    """Return a convolution's weights in the layout of the patch embedding that they are for."""
    return kernel if value.ndim == 4 else kernel.permute(0, 2, 3, 1).flatten(1)


def _resize_patches(backbone: Any, weights: dict[str, Tensor], own: Mapping[str, Tensor], channels: int) -> list[str]:
    """Resize the embedding of patches of another side, whose pixels have so many channels."""
    if _EMBEDDING not in weights:
        return []
    value = weights[_EMBEDDING]
    side = own[_EMBEDDING].shape[-1] if value.ndim == 4 else backbone.patch_size
    kernel = _kernel(value, channels)
    if kernel is None or side == (before := kernel.shape[-1]):
        return []
    weights[_EMBEDDING] = _as_before(resample_patch_embed(kernel, [side, side]), value)
    return [f"patch embedding, {before} to {side} pixels"]


def _fit_channels(backbone: Any, weights: dict[str, Tensor], before: int, channels: int) -> list[str]:
    """Fit the embedding of RGB patches to other channels as timm does: repeated and scaled, or summed up for one.

    Between other numbers of channels nothing says which is which, so that the embedding begins anew.
    """
    if _EMBEDDING not in weights or before == channels or before != 3:
        return []
    value = weights[_EMBEDDING]
    kernel = _kernel(value, before)
    if kernel is None:
        return []
    weights[_EMBEDDING] = _as_before(adapt_input_conv(channels, kernel), value)
    how = "summed up" if channels == 1 else "repeated and scaled, as timm does"
    return [f"patch embedding, {before} to {channels} channel{'s' if channels > 1 else ''}, {how}"]


def _resize_positions(backbone: Any, weights: dict[str, Tensor], source: PretrainedBackbone) -> list[str]:
    """Resize learned positions for another grid of patches."""
    if "pos_embed" not in weights or source.grid is None:
        return []
    grid = tuple(backbone.patch_embed.grid_size)
    if grid == source.grid:
        return []
    prefix = 0 if backbone.no_embed_class else backbone.num_prefix_tokens
    weights["pos_embed"] = resample_abs_pos_embed(
        weights["pos_embed"], new_size=list(grid), old_size=list(source.grid), num_prefix_tokens=prefix
    )
    return [f"positions, {source.grid[0]}x{source.grid[1]} to {grid[0]}x{grid[1]}"]


def _fold_pixels(
    backbone: Any, weights: dict[str, Tensor], source: PretrainedBackbone, preprocessing: Preprocessing
) -> list[str]:
    """Change the patch embedding so that it takes pixels normalised as this network's are, and gives what it gave.

    A pixel is p = x · STD + MEAN here and p = y · std + mean there, so that the source's y is x · STD / std +
    (MEAN - mean) / std: the kernel is scaled, and a constant is added after it.

    Where images are of another kind, no pixel is the same here and there. What is taken for alike are normalised
    values: those of RGB by ImageNet's mean and deviation, and those of others by their own.
    """
    name, bias = _EMBEDDING, "patch_embed.proj.bias"
    alike = source.preprocessing.pixels == preprocessing.pixels
    if name not in weights or not (alike or source.pixels):
        return []
    here = preprocessing if alike else DEFAULT
    mean, std = (torch.tensor(each) for each in source.pixels or (source.preprocessing.mean, source.preprocessing.std))
    ours, deviation = torch.tensor(here.mean), torch.tensor(here.std)
    if mean.shape not in ((1,), ours.shape) or std.shape not in ((1,), ours.shape):
        raise UsageError(f"{source.path} was trained on pixels of {len(mean)} channels, and timm made it for 3")
    off = torch.maximum((mean - ours).abs(), (std - deviation).abs()) / deviation  # in any unit
    if off.max() < _SAME_NUMBERS:
        return []
    value = weights[name]
    scale, shift = (deviation / std).expand_as(ours), ((ours - mean) / std).expand_as(ours)
    if value.ndim == 2:  # a DyViT's, whose channels lie innermost
        repeated = value.shape[1] // len(ours)
        constant = value @ shift.repeat(repeated)
        weights[name] = value * scale.repeat(repeated)
    else:
        constant = (value * shift[None, :, None, None]).sum(dim=(1, 2, 3))
        weights[name] = value * scale[None, :, None, None]
    if bias in weights:
        weights[bias] = weights[bias] + constant
    elif "pos_embed" in weights and isinstance(backbone.patch_embed.norm, nn.Identity):
        positions = weights["pos_embed"].clone()  # which are added next
        positions[:, 0 if backbone.no_embed_class else backbone.num_prefix_tokens :] += constant
        weights["pos_embed"] = positions
    else:
        raise UsageError(f"{source.path} was trained on pixels of another normalisation, which cannot be taken over")
    numbers = ", ".join(f"{each:.4g}" for each in mean.tolist())
    return [f"normalised by other means ({numbers}), which the patch embedding now makes up for"]


def _check_share(
    fitting: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    source: PretrainedBackbone,
    flag: str,
) -> None:
    """Raise UsageError where hardly anything fits."""
    taken, whole = (sum(value.numel() for value in each.values()) for each in (fitting, own))
    if taken >= LEAST_SHARE * whole:
        return
    different = [
        f"{name} {list(weights[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    examples = "; ".join(different[:_SHAPES]) or "no name in common"
    raise UsageError(
        f"{flag} {source.path} is {source.words}, of which {taken / whole:.0%} of this network would come "
        f"({examples}): give --model {source.model}"
    )


def _word(name: str) -> str:
    """Return the word for what a tensor is part of."""
    for pattern, word in _NAMES:
        if re.match(pattern, name):
            return word
    if re.search(r"\.ls\d?\.", name):
        return "layer scale"
    stage = re.match(r"stages\.(\d+)\.(\w+)", name)
    if stage:
        return f"stage {int(stage[1]) + 1}'s {stage[2]}"
    return "blocks" if name.startswith("blocks.") else name
