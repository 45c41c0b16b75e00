"""Options of `coma embed`, light to import."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coma.errors import UsageError
from coma.evaluation.options import KnnOptions
from coma.shards.option import Options, option, option_like
from coma.shards.sources.splits import SplitRules
from coma.shards.write.options import ShardOptions

_VECTORS, _NEIGHBOURS, _SOURCE, _RUNNING = "Vectors", "Neighbours", "Images", "Running"
SUFFIXES = (".parquet", ".npy")
SOURCE_FLAGS = {
    "layout": "--layout",
    "splits": "--splits",
    "image_column": "--image-column",
    "label_column": "--label-column",
    "root": "--root",
}
"""Options that say how images are read that are not sharded, with their flags."""


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(Options):
    """Options of embedding images."""

    model: str = option(
        help="Run folder, checkpoint, export, or a name in timm with weights (hf-hub:OWNER/NAME, local-dir:FOLDER).",
        argument=True,
        path=True,
    )
    images: str = option(
        help="Folder of images, tar, parquet or list of paths; or shards: a folder, or a URL (s3://...).",
        argument=True,
        path=True,
    )
    out: Path | None = option(
        None,
        help="Table to write, a .parquet; or an .npy, with a .parquet of paths beside it.",
        argument=True,
        shown_default="IMAGES-MODEL.parquet in the current folder",
    )
    half: bool = option(False, help="Write float16, half the size, in place of float32.", panel=_VECTORS)
    patches: bool = option(False, help="Write a map of patch features of each image as well.", panel=_VECTORS)
    stride: int | None = option(
        None,
        help="Number of pixels from one vector of a map to the next; resampled from the model's own, with --patches.",
        panel=_VECTORS,
        metavar="PX",
        least=1,
        shown_default="that of the model's last stage",
    )
    image_size: int | None = option(
        None,
        help="Side of the images, in pixels.",
        panel=_VECTORS,
        metavar="PX",
        least=1,
        shown_default="that of the model",
    )
    untrained: bool = option(
        False, help="Take a name in timm without its weights, at random, as a baseline.", panel=_VECTORS
    )
    neighbours: int | None = option(
        None,
        help="Find so many nearest images of each by cosine similarity, near-duplicates and outliers, and draw some.",
        panel=_NEIGHBOURS,
        metavar="K",
        least=1,
        most=1000,
    )
    duplicates_above: float = option(
        0.95,
        help="Cosine similarity from which two images count as near-duplicates.",
        panel=_NEIGHBOURS,
        least=-1,
        most=1,
    )
    query: str | None = option(
        None,
        help="Path or key of the image whose neighbours are drawn.",
        panel=_NEIGHBOURS,
        metavar="PATH",
        shown_default="six spread over all",
    )
    split: str | None = option(
        None, help="Split to take alone.", panel=_SOURCE, metavar="NAME", shown_default="all, train first"
    )
    layout: str | None = option_like(ShardOptions, "layout", panel=_SOURCE)
    splits: SplitRules | None = option_like(ShardOptions, "splits", panel=_SOURCE)
    image_column: str | None = option_like(ShardOptions, "image_column", panel=_SOURCE)
    label_column: str | None = option_like(ShardOptions, "label_column", panel=_SOURCE)
    root: Path | None = option_like(ShardOptions, "root", panel=_SOURCE)
    batch_size: int = option_like(KnnOptions, "batch_size")
    device: str | None = option_like(KnnOptions, "device")
    devices: int | Literal["auto"] | None = option_like(
        KnnOptions,
        "devices",
        help="Number of processes, one per GPU if there are GPUs; auto: one on each. The result is the same.",
    )
    overwrite: bool = option(False, help="Replace an OUT of other settings, or an unfinished one.", panel=_RUNNING)

    def __post_init__(self) -> None:
        """Check the limits, and what does not fit together."""
        super().__post_init__()
        if self.out is not None and self.out.suffix.lower() not in SUFFIXES:
            raise UsageError(f"{self.out} is no name for a table: end it in .parquet or .npy")
        if self.stride is not None and not self.patches:
            raise UsageError(f"--stride {self.stride} is of patch maps: add --patches")
        if self.query is not None and self.neighbours is None:
            raise UsageError(f"--query {self.query} is drawn with its neighbours: add --neighbours K")
