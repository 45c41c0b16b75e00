"""Options of `coma knn` and `coma probe`, light to import."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coma.errors import UsageError
from coma.shards.option import Options, option

_RUNNING = "Running"
_SEGMENTATION = "Segmentation"
_OF_SEGMENTATION = ("window_size", "shorter_side", "stride", "patches")


@dataclass(frozen=True, kw_only=True)
class KnnOptions(Options):
    """Options of scoring frozen features by their nearest neighbours."""

    run: Path = option(
        help="Run folder, one of its checkpoints, or what `coma export` wrote.", argument=True, metavar="RUN|EXPORT"
    )
    data: Path | str | None = option(
        None,
        help="Labelled data set made by `coma shard`: a folder, or a URL (s3://...).",
        argument=True,
        shown_default="the run's own",
    )
    task: Literal["classification", "segmentation"] = option(
        "classification", help="What is classified: images, or the pixels of images with masks."
    )
    window_size: int | None = option(
        None,
        help="Side of the windows that the network sees, in pixels.",
        panel=_SEGMENTATION,
        least=1,
        shown_default="the run's image size",
    )
    shorter_side: int | None = option(
        None,
        help="Side in pixels that images are resized to, to be covered by sliding windows.",
        panel=_SEGMENTATION,
        least=1,
        shown_default="each whole image squeezed into one window; with dinov2, the window's side",
    )
    stride: int | None = option(
        None,
        help="Pixels from patch to patch of the maps.",
        panel=_SEGMENTATION,
        least=1,
        shown_default="that of the third stage of DyViT, 4 patches",
    )
    patches: int | None = option(
        None,
        help="Number of patches to learn from, at most: the same number of each image.",
        panel=_SEGMENTATION,
        least=1,
        shown_default="100000",
    )
    batch_size: int = option(64, help="Number of images per batch.", panel=_RUNNING, least=1)
    device: str | None = option(
        None, help="Device to run on.", panel=_RUNNING, metavar="cpu|cuda", shown_default="a GPU if there is one"
    )
    devices: int | Literal["auto"] | None = option(
        None,
        help="Number of processes, one per GPU if there are GPUs; auto: one on each. Segmentation takes one.",
        panel=_RUNNING,
        metavar="N|auto",
        least=1,
        shown_default="1",
    )

    def __post_init__(self) -> None:
        """Check the limits, and that no option is given in vain."""
        super().__post_init__()
        given = [name for name in _OF_SEGMENTATION if getattr(self, name) is not None]
        if given and self.task != "segmentation":
            flag = given[0].replace("_", "-")
            raise UsageError(f"--{flag} is for windows of images with masks: give --task segmentation, or leave it out")
        if self.devices is not None and self.task == "segmentation":
            raise UsageError("--devices is for --task classification: segmentation runs in one process, on --device")


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(KnnOptions):
    """Options of a linear probe of frozen features."""

    protocol: Literal["logistic", "dinov2", "mae"] = option(
        "logistic", help="Protocol by which the classifier is fitted (docs/evaluate.md)."
    )

    def __post_init__(self) -> None:
        """Check that the protocol is one of the task's."""
        super().__post_init__()
        if self.task != "segmentation":
            return
        if self.protocol == "mae":
            raise UsageError("--protocol mae is for --task classification; segmentation has logistic and dinov2")
        if self.protocol == "dinov2" and self.patches is not None:
            raise UsageError("--patches is for --protocol logistic and neighbours; dinov2 learns from all pixels")
