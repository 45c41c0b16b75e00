"""Mask R-CNN on an exported backbone: boxes, classes and masks, from its weights and from random ones.

    coma demo && coma export coma-demo/run exports/demo
    python examples/detection.py exports/demo --image-size 48 --width 64

Learns from the demo's drawn scenes, each with one object of ten kinds, and prints a line for each export. torchvision's
detector takes any backbone that gives a pyramid of maps; `Pyramid` is all that there is to it. For your own data, put a
loader of (images, targets) as torchvision's documentation describes them in place of `draw`.
"""

import argparse
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN  # type: ignore[import-untyped]
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor  # type: ignore[import-untyped]
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor  # type: ignore[import-untyped]
from torchvision.models.detection.rpn import AnchorGenerator  # type: ignore[import-untyped]
from torchvision.ops import FeaturePyramidNetwork, box_iou, masks_to_boxes  # type: ignore[import-untyped]
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool  # type: ignore[import-untyped]

import coma  # noqa: F401  makes timm know the model
from coma.demo.scenes import CLASS_NAMES, draw_segmented_scene

Target = dict[str, Tensor]


class Pyramid(nn.Module):
    """The backbone's four maps through a feature pyramid network."""

    def __init__(self, export: Path, out_channels: int = 256, pretrained: bool = True) -> None:
        super().__init__()
        self.body = timm.create_model(f"local-dir:{export}", pretrained=pretrained, features_only=True)
        channels = self.body.feature_info.channels()
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] to five maps [B, out_channels, h, w]."""
        maps: dict[str, Tensor] = self.fpn(OrderedDict((str(s), x) for s, x in enumerate(self.body(images))))
        return maps


def build(export: Path, image_size: int, width: int = 256, pretrained: bool = True) -> MaskRCNN:
    """Mask R-CNN whose shorter side is `image_size` pixels; images are padded to whole mask units."""
    backbone = Pyramid(export, width, pretrained)
    strides = backbone.body.feature_info.reduction()
    data = timm.data.resolve_model_data_config(backbone.body)
    anchors = [(8 * stride,) for stride in (*strides, 2 * strides[-1])]
    classes = 1 + len(CLASS_NAMES)  # 0 is the background
    return MaskRCNN(
        backbone,
        min_size=image_size,
        max_size=2 * image_size,
        image_mean=data["mean"],
        image_std=data["std"],
        rpn_anchor_generator=AnchorGenerator(anchors, [(0.5, 1.0, 2.0)] * len(anchors)),
        box_predictor=FastRCNNPredictor(1024, classes),
        mask_head=MaskRCNNHeads(width, (width,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(width, width, classes),
        box_batch_size_per_image=16,  # there is one object
        rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=50,
        box_detections_per_img=5,
        size_divisible=strides[-1],
    )


def draw(count: int, size: int, seed: int) -> tuple[list[Tensor], list[Target]]:
    """Pictures [3, H, W] in [0, 1] of this shorter side, and the box, class and mask of the object in each."""
    images, targets = [], []
    for number in range(count):
        label = number % len(CLASS_NAMES)
        picture, mask = draw_segmented_scene(label, np.random.default_rng([seed, number]))
        scale = size / min(picture.size)
        shape = (round(picture.width * scale), round(picture.height * scale))
        picture, mask = picture.resize(shape), mask.resize(shape, Image.Resampling.NEAREST)
        images.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255)
        inside = torch.from_numpy(np.array(mask) >= 2)[None]  # below 2: background and plain clutter
        target = {"boxes": masks_to_boxes(inside), "labels": torch.tensor([label + 1]), "masks": inside.to(torch.uint8)}
        targets.append(target)
    return images, targets


def on(device: str, images: list[Tensor], targets: list[Target]) -> tuple[list[Tensor], list[Target]]:
    """Move pictures and what is in them to a device."""
    return [x.to(device) for x in images], [{key: x.to(device) for key, x in each.items()} for each in targets]


def train(
    detector: MaskRCNN, images: Sequence[Tensor], targets: Sequence[Target], steps: int, batch_size: int, lr: float
) -> list[float]:
    """Train the whole detector on random batches; return the loss of each step."""
    optimizer = torch.optim.AdamW(detector.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    history = []
    for _ in range(steps):
        rows = torch.randint(len(images), (batch_size,)).tolist()
        losses = detector([images[row] for row in rows], [targets[row] for row in rows])
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        history.append(loss.item())
    return history


@torch.no_grad()
def found(detector: MaskRCNN, images: Sequence[Tensor], targets: Sequence[Target]) -> float:
    """Percentage of pictures in which the box of the highest score has the object's class and half of its place."""
    detector.eval()
    hits = 0
    for image, target in zip(images, targets, strict=True):
        (objects,) = detector([image])
        if len(objects["labels"]):  # the highest score comes first
            overlaps = box_iou(objects["boxes"][:1], target["boxes"]).item() >= 0.5
            hits += bool(overlaps and objects["labels"][0] == target["labels"][0])
    return 100 * hits / len(images)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, float]]:
    """Train from the export's weights and from random ones, print how good each gets, and return that."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", type=Path, nargs="+", help="folders that `coma export` wrote, a seed each")
    parser.add_argument("--pictures", type=int, default=200, help="number of pictures to learn from")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=256, help="shorter side, pixels")
    parser.add_argument("--width", type=int, default=256, help="channels of the pyramid and the heads")
    parser.add_argument("--lr", type=float, default=1e-3)
    given = parser.parse_args(arguments)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    results: list[dict[str, float]] = []
    print("| seed | random weights, objects found | pre-trained, objects found |\n|---|---|---|")
    for seed, export in enumerate(given.exports):
        images, targets = on(device, *draw(given.pictures, given.image_size, seed))
        new_images, new_targets = on(device, *draw(100, given.image_size, 1000 + seed))
        scores: dict[str, float] = {}
        for name, pretrained in (("random", False), ("pretrained", True)):
            torch.manual_seed(seed)
            detector = build(export, given.image_size, given.width, pretrained).to(device)
            losses = train(detector, images, targets, given.steps, given.batch_size, given.lr)
            scores |= {name: found(detector, new_images, new_targets), f"{name}_loss": losses[-1]}
        print(f"| {seed} | {scores['random']:.1f}% | {scores['pretrained']:.1f}% |", flush=True)
        results.append(scores)
    return results


if __name__ == "__main__":
    main()
