"""Mask R-CNN on an exported backbone: boxes, classes and masks, learned from pictures drawn here.

    coma export runs/dyvit_base exports/dyvit_base
    python examples/detection.py exports/dyvit_base

torchvision's detector takes any backbone that gives a pyramid of maps; `Pyramid` is all that there is to it. For your
own data, put a loader of (images, targets) as torchvision's documentation describes them in place of `draw`.
"""

import argparse
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN  # type: ignore[import-untyped]
from torchvision.models.detection.rpn import AnchorGenerator  # type: ignore[import-untyped]
from torchvision.ops import FeaturePyramidNetwork  # type: ignore[import-untyped]
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool  # type: ignore[import-untyped]

import coma  # noqa: F401  makes timm know the model

CLASSES = ("background", "square", "disc")


class Pyramid(nn.Module):
    """The backbone's four maps through a feature pyramid network."""

    def __init__(self, export: Path, out_channels: int = 256) -> None:
        super().__init__()
        self.body = timm.create_model(f"local-dir:{export}", pretrained=True, features_only=True)
        channels = self.body.feature_info.channels()
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] to five maps [B, out_channels, h, w]."""
        maps: dict[str, Tensor] = self.fpn(OrderedDict((str(s), x) for s, x in enumerate(self.body(images))))
        return maps


def build(export: Path, image_size: int) -> MaskRCNN:
    """Mask R-CNN whose shorter side is `image_size` pixels; images are padded to whole mask units."""
    backbone = Pyramid(export)
    strides = backbone.body.feature_info.reduction()
    data = timm.data.resolve_model_data_config(backbone.body)
    anchors = [(8 * stride,) for stride in (*strides, 2 * strides[-1])]
    return MaskRCNN(
        backbone,
        num_classes=len(CLASSES),
        min_size=image_size,
        max_size=2 * image_size,
        image_mean=data["mean"],
        image_std=data["std"],
        rpn_anchor_generator=AnchorGenerator(anchors, [(0.5, 1.0, 2.0)] * len(anchors)),
        size_divisible=strides[-1],
    )


def draw(count: int, size: int, generator: torch.Generator) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Pictures [3, size, 1.5 size] in [0, 1] of a square and a disc each, and what is to be found in them."""
    width = size * 3 // 2
    down, right = torch.meshgrid(torch.arange(size), torch.arange(width), indexing="ij")
    images, targets = [], []
    for _ in range(count):
        image = 0.3 * torch.rand(3, size, width, generator=generator)
        masks = []
        for label in (1, 2):
            half = int(torch.randint(size // 8, size // 4, (), generator=generator))
            y = int(torch.randint(half, size - half, (), generator=generator))
            x = int(torch.randint(half, width - half, (), generator=generator))
            dy, dx = (down - y).abs(), (right - x).abs()
            mask = torch.maximum(dy, dx) <= half if label == 1 else dy**2 + dx**2 <= half**2
            image[:, mask] = 0.4 + 0.6 * torch.rand(3, 1, generator=generator)
            masks.append(mask)
        boxes = [[float(m.nonzero()[:, d].min()) for d in (1, 0)] for m in masks]
        ends = [[float(m.nonzero()[:, d].max()) + 1 for d in (1, 0)] for m in masks]
        targets.append(
            {
                "boxes": torch.cat([torch.tensor(boxes), torch.tensor(ends)], dim=1),
                "labels": torch.tensor([1, 2]),
                "masks": torch.stack(masks).to(torch.uint8),
            }
        )
        images.append(image)
    return images, targets


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train, show what is found in a new picture, and return the loss of each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, help="folder that `coma export` wrote")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=256, help="shorter side, pixels")
    parser.add_argument("--lr", type=float, default=1e-4)
    given = parser.parse_args(arguments)

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    detector = build(given.export, given.image_size).to(device)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=given.lr, weight_decay=0.05)
    generator = torch.Generator().manual_seed(0)
    history: list[float] = []
    for step in range(1, given.steps + 1):
        images, targets = draw(given.batch_size, given.image_size, generator)
        losses = detector(
            [image.to(device) for image in images],
            [{name: value.to(device) for name, value in target.items()} for target in targets],
        )
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        history.append(loss.item())
        print(f"step {step}  " + "  ".join(f"{name[5:]} {value.item():.3f}" for name, value in losses.items()))

    detector.eval()
    with torch.no_grad():
        (objects,) = detector([image.to(device) for image in draw(1, given.image_size, generator)[0]])
    for label, score, box in zip(objects["labels"][:4], objects["scores"][:4], objects["boxes"][:4], strict=True):
        print(f"{CLASSES[int(label)]} {score.item():.2f} at {[round(edge) for edge in box.tolist()]}")
    return history


if __name__ == "__main__":
    main()
