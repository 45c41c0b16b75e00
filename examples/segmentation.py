"""Semantic segmentation on an exported backbone: a class for every pixel, from its weights and from random ones.

    coma demo && coma export coma-demo/run exports/demo
    python examples/segmentation.py exports/demo --image-size 48 --width 64

Learns from the demo's drawn scenes with their masks, and prints a line for each export. The head is UPerNet's (arXiv
1807.10221): the last map pooled at several scales, a feature pyramid, all of its levels side by side. For your own
data, put a loader of images [B, 3, H, W] and labels [B, H, W] in place of `draw`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import coma  # noqa: F401  makes timm know the model
from coma.demo.scenes import SEGMENT_NAMES as CLASSES
from coma.demo.scenes import draw_segmented_scene


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

    def __init__(self, export: Path, classes: int, width: int = 256, pretrained: bool = True) -> None:
        super().__init__()
        self.backbone = timm.create_model(f"local-dir:{export}", pretrained=pretrained, features_only=True)
        self.head = UPerHead(self.backbone.feature_info.channels(), classes, width)

    def forward(self, images: Tensor) -> Tensor:
        """H and W are multiples of the mask unit, 32 pixels for patches of 4."""
        return resize(self.head(self.backbone(images)), images.shape[2:])


def draw(count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures [count, 3, size, size] in [0, 1] of an object before a background, and labels [count, size, size]."""
    images, labels = [], []
    for number in range(count):
        picture, mask = draw_segmented_scene(number % 10, np.random.default_rng([seed, number]))
        images.append(np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)))
        labels.append(np.asarray(mask.resize((size, size), Image.Resampling.NEAREST)))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255, torch.from_numpy(np.stack(labels)).long()


def train(model: Segmenter, images: Tensor, labels: Tensor, steps: int, batch_size: int, lr: float) -> list[float]:
    """Train backbone and head together on random batches; return the loss of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    history = []
    for _ in range(steps):
        rows = torch.randint(len(images), (batch_size,))
        loss = F.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        history.append(loss.item())
    return history


@torch.no_grad()
def miou(model: Segmenter, images: Tensor, labels: Tensor) -> float:
    """Mean over the classes of intersection over union, in percent."""
    model.eval()
    predicted = torch.cat([model(some).argmax(dim=1) for some in torch.split(images, 20)])
    one, other = F.one_hot(predicted, len(CLASSES)).bool(), F.one_hot(labels, len(CLASSES)).bool()
    both, either = ((one & other).sum(dim=(0, 1, 2)), (one | other).sum(dim=(0, 1, 2)))
    return float(100 * (both / either)[either > 0].mean())


def main(arguments: Sequence[str] | None = None) -> list[dict[str, float]]:
    """Train from the export's weights and from random ones, print how good each gets, and return that."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", type=Path, nargs="+", help="folders that `coma export` wrote, a seed each")
    parser.add_argument("--pictures", type=int, default=200, help="number of pictures to learn from")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=256, help="pixels, a multiple of the mask unit")
    parser.add_argument("--width", type=int, default=256, help="channels of the head")
    parser.add_argument("--lr", type=float, default=1e-3)
    given = parser.parse_args(arguments)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    results: list[dict[str, float]] = []
    print("| seed | random weights, mIoU | pre-trained, mIoU |\n|---|---|---|")
    for seed, export in enumerate(given.exports):
        scores: dict[str, float] = {}
        for name, pretrained in (("random", False), ("pretrained", True)):
            torch.manual_seed(seed)
            model = Segmenter(export, len(CLASSES), given.width, pretrained).to(device)
            unit = model.backbone.feature_info.reduction()[-1]
            if given.image_size % unit:
                parser.error(f"--image-size {given.image_size} is not a multiple of {unit}, the backbone's mask unit")
            data = timm.data.resolve_model_data_config(model.backbone)
            mean, std = (torch.tensor(data[key]).view(3, 1, 1) for key in ("mean", "std"))
            images, labels = draw(given.pictures, given.image_size, seed)
            new_images, new_labels = draw(100, given.image_size, 1000 + seed)
            images, new_images = (((x - mean) / std).to(device) for x in (images, new_images))
            losses = train(model, images, labels.to(device), given.steps, given.batch_size, given.lr)
            scores |= {name: miou(model, new_images, new_labels.to(device)), f"{name}_loss": losses[-1]}
        print(f"| {seed} | {scores['random']:.1f} | {scores['pretrained']:.1f} |", flush=True)
        results.append(scores)
    return results


if __name__ == "__main__":
    main()
