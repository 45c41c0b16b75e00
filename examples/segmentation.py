"""Semantic segmentation on an exported backbone: a class for every pixel, learned from pictures drawn here.

    coma export runs/dyvit_base exports/dyvit_base
    python examples/segmentation.py exports/dyvit_base

The head is UPerNet's (arXiv 1807.10221): the last map pooled at several scales, a feature pyramid, all of its levels
side by side. For your own data, put a loader of images [B, 3, H, W] and labels [B, H, W] in place of `draw`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import coma  # noqa: F401  makes timm know the model

CLASSES = ("background", "square", "disc")


def conv(in_channels: int, out_channels: int, side: int) -> nn.Sequential:
    """Convolution, group norm, ReLU at the same size."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, side, padding=side // 2, bias=False),
        nn.GroupNorm(16, out_channels),
        nn.ReLU(),
    )


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """[B, C, h, w] to [B, C, *size]."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


class UPerHead(nn.Module):
    """Maps of four strides to one of logits at the finest of them."""

    def __init__(self, channels: Sequence[int], classes: int, width: int = 256, scales: Sequence[int] = (1, 2, 3, 6)):
        super().__init__()
        self.scales = scales
        self.pooled = nn.ModuleList(conv(channels[-1], width, 1) for _ in scales)
        self.context = conv(channels[-1] + len(scales) * width, width, 3)
        self.lateral = nn.ModuleList(conv(c, width, 1) for c in channels[:-1])
        self.smooth = nn.ModuleList(conv(width, width, 3) for _ in channels[:-1])
        self.fuse = conv(len(channels) * width, width, 3)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """[B, C_s, h_s, w_s] of each stage to [B, classes, h_0, w_0]."""
        last, size = maps[-1], maps[-1].shape[2:]
        pooled = [
            resize(reduce(F.adaptive_avg_pool2d(last, n)), size)
            for n, reduce in zip(self.scales, self.pooled, strict=True)
        ]
        levels = [self.context(torch.cat([last, *pooled], dim=1))]
        for x, lateral in zip(maps[-2::-1], list(self.lateral)[::-1], strict=True):
            levels.append(lateral(x) + resize(levels[-1], x.shape[2:]))
        levels = [
            levels[0],
            *(smooth(x) for x, smooth in zip(levels[1:], list(self.smooth)[::-1], strict=True)),
        ]
        fused = torch.cat([resize(x, maps[0].shape[2:]) for x in levels], dim=1)
        logits: Tensor = self.classify(self.fuse(fused))
        return logits


class Segmenter(nn.Module):
    """Images [B, 3, H, W], normalised, to logits [B, classes, H, W]."""

    def __init__(self, export: Path, classes: int) -> None:
        super().__init__()
        self.backbone = timm.create_model(f"local-dir:{export}", pretrained=True, features_only=True)
        self.head = UPerHead(self.backbone.feature_info.channels(), classes)

    def forward(self, images: Tensor) -> Tensor:
        """H and W are multiples of the mask unit, 32 pixels for patches of 4."""
        return resize(self.head(self.backbone(images)), images.shape[2:])


def draw(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures [count, 3, size, size] in [0, 1] of a square and a disc each, and labels [count, size, size]."""
    down, right = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    images = 0.3 * torch.rand(count, 3, size, size, generator=generator)
    labels = torch.zeros(count, size, size, dtype=torch.int64)
    for image, label in zip(images, labels, strict=True):
        for shape in (1, 2):
            half = int(torch.randint(size // 8, size // 4, (), generator=generator))
            y, x = torch.randint(half, size - half, (2,), generator=generator).tolist()
            dy, dx = (down - y).abs(), (right - x).abs()
            mask = torch.maximum(dy, dx) <= half if shape == 1 else dy**2 + dx**2 <= half**2
            image[:, mask] = 0.4 + 0.6 * torch.rand(3, 1, generator=generator)
            label[mask] = shape
    return images, labels


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train, say how much of new pictures is right, and return the loss of each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, help="folder that `coma export` wrote")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=256, help="pixels, a multiple of the mask unit")
    parser.add_argument("--lr", type=float, default=1e-4)
    given = parser.parse_args(arguments)

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Segmenter(given.export, len(CLASSES)).to(device)
    unit = model.backbone.feature_info.reduction()[-1]
    if given.image_size % unit:
        parser.error(f"--image-size {given.image_size} is not a multiple of {unit}, the backbone's mask unit")
    data = timm.data.resolve_model_data_config(model.backbone)
    mean, std = (torch.tensor(data[name]).view(3, 1, 1) for name in ("mean", "std"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr, weight_decay=0.05)
    generator = torch.Generator().manual_seed(0)

    def batch() -> tuple[Tensor, Tensor]:
        images, labels = draw(given.batch_size, given.image_size, generator)
        return ((images - mean) / std).to(device), labels.to(device)

    history: list[float] = []
    for step in range(1, given.steps + 1):
        images, labels = batch()
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(loss.item())
        print(f"step {step}  loss {loss.item():.3f}")

    model.eval()
    with torch.no_grad():
        images, labels = batch()
        right = model(images).argmax(dim=1) == labels
    for label, name in enumerate(CLASSES):
        print(f"{name}: {100 * right[labels == label].float().mean().item():.1f}% of its pixels right")
    return history


if __name__ == "__main__":
    main()
