"""Scores of a dense evaluation, and how they are written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coma.evaluation.dense.overlap import Overlap


@dataclass(frozen=True)
class SegmentationScores:
    """Scores of a backbone's frozen maps by the heads that were fitted."""

    overlaps: Mapping[str, Overlap]
    """Pixels of the test images by class, for each head: logistic, knn, dinov2."""
    class_names: tuple[str, ...]
    train_images: int
    test_images: int
    tested_on: str
    patches: int | None
    """Number of patches that the heads were fitted to; None for those that are fitted to pixels."""
    channels: int
    window_size: int
    shorter_side: int | None
    stride: int

    def metrics_line(self, step: int) -> dict[str, Any]:
        """Return an evaluation line of metrics.jsonl: the step, then mIoU and pixel accuracy of each head."""
        line: dict[str, Any] = {"step": step}
        for name, overlap in self.overlaps.items():
            line[score_name("miou", name)] = round(overlap.miou, 3)
            line[score_name("pixel_accuracy", name)] = round(overlap.pixel_accuracy, 3)
        return line

    def to_json(self) -> dict[str, Any]:
        """Return what belongs beside a metrics line: intervals, the table of classes, and what was tested on what."""
        intervals = {
            f"{score_name('miou', name)}_interval": [round(end, 3) for end in overlap.miou_interval()]
            for name, overlap in self.overlaps.items()
        }
        return {
            **intervals,
            "class_iou": self.class_table(),
            "train_images": self.train_images,
            "test_images": self.test_images,
            "tested_on": self.tested_on,
            "patches": self.patches,
            "channels": self.channels,
            "classes": len(self.class_names),
            "window_size": self.window_size,
            "shorter_side": self.shorter_side,
            "stride": self.stride,
        }

    def class_table(self) -> list[dict[str, Any]]:
        """Return a row a class: name, share of the test's pixels and IoU by each head, all in percent."""
        first = next(iter(self.overlaps.values()))
        rows: list[dict[str, Any]] = [
            {"class": name, "share": round(share, 3)}
            for name, share in zip(self.class_names, first.class_share, strict=True)
        ]
        for name, overlap in self.overlaps.items():
            for row, iou in zip(rows, overlap.class_iou, strict=True):
                row[score_name("iou", name)] = None if iou is None else round(iou, 3)
        return rows


def score_name(figure: str, head: str) -> str:
    """Return the key of a figure by a head: `miou` by logistic regression, else `miou_knn`, `miou_dinov2`."""
    return figure if head == "logistic" else f"{figure}_{head}"
