"""Results of the functions of `coma`: frozen dataclasses that show themselves in a notebook."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from coma.shards.files import without_credentials
from coma.shards.text import visible

if TYPE_CHECKING:
    from numpy import floating
    from numpy.typing import NDArray

    from coma.shards.check.one_shard import Problem

_SHOWN = 10
"""Number of entries of a list that a result shows."""


@dataclass(frozen=True, repr=False)
class Result:
    """A result, which stands for its first field where a path is wanted: `coma.probe(run)`."""

    @classmethod
    def of(cls, values: Mapping[str, Any], **more: Any) -> Self:
        """Make a result of those values that are its fields; texts become paths where a path is wanted."""
        given = {**values, **more}
        fields = [field for field in dataclasses.fields(cls) if field.name in given]
        return cls(**{field.name: _as_path(field, given[field.name]) for field in fields})

    def __fspath__(self) -> str:
        """Return the path of what was made."""
        return str(getattr(self, dataclasses.fields(self)[0].name))

    def __repr__(self) -> str:
        """Return a line for each field that has a value."""
        lines = self._lines()
        width = max(map(len, lines))
        return "\n".join([type(self).__name__, *(f"  {name:<{width}}  {text}" for name, text in lines.items())])

    def _repr_html_(self) -> str:
        """Return a table, below it the picture if there is one; notebooks call this."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th>"
            f"<td style='text-align:left;white-space:pre-wrap'>{escape(text)}</td></tr>"
            for name, text in self._lines().items()
        )
        picture = getattr(self, "picture", None)
        image = ""
        if picture is not None and picture.is_file():
            data = base64.b64encode(picture.read_bytes()).decode()
            image = f"<img style='max-width:100%' alt='{escape(picture.name)}' src='data:image/png;base64,{data}'>"
        return f"<table>{rows}</table>{image}"

    def _lines(self) -> dict[str, str]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: _text(value) for name, value in values.items() if value is not None}


def _as_path(field: dataclasses.Field[Any], value: Any) -> Any:
    return Path(value) if str(field.type).startswith("Path") and isinstance(value, str) else value


def _text(value: Any) -> str:
    """Return a value as a person reads it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_text(count)} {visible(str(name))}" for name, count in value.items()) or "none"
    if isinstance(value, tuple) and value and isinstance(value[0], float):
        return " to ".join(map(_text, value))
    if isinstance(value, tuple):
        more = [f"and {len(value) - _SHOWN:,} more"] if len(value) > _SHOWN else []
        first = value[:_SHOWN]
        shown = (" ".join(map(_text, each)) if isinstance(each, tuple) else visible(str(each)) for each in first)
        return "; ".join([*shown, *more]) or "none"
    return visible(without_credentials(str(value)))


@dataclass(frozen=True, repr=False)
class ShardResult(Result):
    """Data set that `coma.shard` or `coma.index` made: every image found was kept or set aside."""

    out: Path
    """Folder or URL of the data set."""
    found: int
    """Number of images found in the source."""
    kept: int
    """Number of images in the shards."""
    set_aside: int
    """Number of images that are damaged or could not be read."""
    reasons: dict[str, int]
    """Images set aside, by kind of reason."""
    converted: dict[str, int]
    """Images kept with other bytes than the source's, by kind of reason."""
    passed_over: dict[str, int]
    """Files of the source that are no images, by kind."""
    classes: int
    """Number of classes; 0 without labels."""
    splits: dict[str, int]
    """Number of images in each split."""
    shards: int
    """Number of shards."""
    shard_bytes: int
    """Size of all shards together."""
    elapsed_s: float
    """Duration of this call."""
    quarantine: Path | None = None
    """Table of the images set aside, if there are any."""
    part: str | None = None
    """Which part of the data set this is ("3/16"), while it is not complete."""


@dataclass(frozen=True, repr=False)
class DryRunResult(Result):
    """Data set that `coma.shard` would make; nothing was written."""

    out: Path
    """Folder or URL that would be written."""
    source: Path
    """What would be read."""
    layout: str
    """How the source is read, such as a folder for each class."""
    found: int
    """Number of images found in the source."""
    refused: int
    """Images that would be set aside because of what their listing says."""
    passed_over: dict[str, int]
    """Files of the source that are no images, by kind."""
    splits: dict[str, int]
    """Number of images in each split."""
    shards: int
    """Number of shards that would be written."""
    shard_bytes: int
    """Estimated size of all shards."""
    done_shards: int
    """Shards that an earlier run has finished."""
    spool_bytes: int
    """Disk space that parquet rows take while the run is under way."""
    free_bytes: int | None = None
    """Free space on the disk of `out`; None in an object store."""


@dataclass(frozen=True, repr=False)
class VerifyResult(Result):
    """What `coma.verify` checked, and every difference from the manifest."""

    data: Path
    """Folder or URL of the data set."""
    samples: int
    """Number of images checked."""
    shards: int
    """Number of shards checked."""
    image_bytes: int
    """Size of the images checked."""
    problems: tuple[Problem, ...]
    """Differences from the manifest, each with `split`, `shard`, `key` and `reason`."""

    @property
    def ok(self) -> bool:
        """Whether no difference was found."""
        return not self.problems


@dataclass(frozen=True, repr=False)
class TrainingResult(Result):
    """Run that `coma.pretrain` or `coma.finetune` trained; a path is None if there is no such file."""

    run: Path
    """Run folder."""
    steps: int
    """Number of steps that the newest checkpoint has seen."""
    epochs: float
    """Number of epochs that these steps come to."""
    loss: float | None
    """Loss of the last step that has one; None before the first."""
    elapsed_s: float
    """Duration of this call."""
    finished: bool
    """Whether all steps are done."""
    metrics: Path
    """JSON lines, one for each step and each evaluation."""
    images_per_s: float | None = None
    """Images a second over all processes, in this call."""
    accuracy: float | None = None
    """Top-1 accuracy of a fine-tuned classifier on split val, in percent."""
    accuracy_top5: float | None = None
    checkpoint: Path | None = None
    """Folder of the newest checkpoint."""
    weights: Path | None = None
    """Weights of the whole network in float32, as safetensors."""
    picture: Path | None = None
    """Reconstructions after the last step."""
    report: Path | None = None
    """HTML report."""


@dataclass(frozen=True, repr=False)
class ScoreResult(Result):
    """Score of frozen features by `coma.probe` or `coma.knn`, in percent."""

    run: Path
    """Run folder or export that was scored."""
    accuracy: float
    """Top-1 accuracy on the test images."""
    interval: tuple[float, float]
    """95% confidence interval of the accuracy."""
    rankme: float
    """Effective rank of the features, at most their channels."""
    channels: int
    """Number of channels of the features."""
    step: int
    """Training step of the checkpoint."""
    checkpoint: Path
    """Folder of the checkpoint that was scored."""
    data: str
    """Data set with the labels."""
    train_images: int
    """Number of labelled images that the classifier was fitted to, or that are neighbours."""
    test_images: int
    """Number of images in the test."""
    tested_on: str
    """What the test images are: split val, or a held-out fifth of train."""
    classes: int
    """Number of classes."""
    device: str
    """Device that computed the features."""
    accuracy_top5: float | None = None
    """None where there are 5 classes or fewer, and for neighbours."""
    protocol: str | None = None
    """How a probe was fitted; None for neighbours."""
    metrics: Path | None = None
    """File that the score was added to; None for an export."""


@dataclass(frozen=True, repr=False)
class SegmentationResult(Result):
    """Score of frozen maps by `coma.probe` or `coma.knn` with `task="segmentation"`, in percent."""

    run: Path
    """Run folder or export that was scored."""
    miou: float
    """Mean intersection over union of the classes; of a probe's linear head, or of neighbours."""
    interval: tuple[float, float]
    """95% confidence interval of the mIoU, over the test images."""
    pixel_accuracy: float
    """Share of the pixels whose class is right."""
    class_iou: dict[str, float | None]
    """IoU by class; None for one that is neither in the test nor predicted."""
    channels: int
    """Number of channels of the maps."""
    window_size: int
    """Side of the windows that the network sees, in pixels."""
    stride: int
    """Pixels from patch to patch."""
    step: int
    """Training step of the checkpoint."""
    checkpoint: Path
    """Folder of the checkpoint that was scored."""
    data: str
    """Data set with the masks."""
    train_images: int
    """Number of images whose pixels were learned from."""
    test_images: int
    """Number of images in the test."""
    tested_on: str
    """What the test images are: split val, or a held-out fifth of train."""
    device: str
    """Device that computed the maps."""
    shorter_side: int | None = None
    """Side that images were resized to, for sliding windows; None: each was squeezed into one window."""
    patches: int | None = None
    """Number of patches that were learned from; None for those that learn from pixels."""
    miou_knn: float | None = None
    """mIoU of neighbours, beside that of a probe."""
    protocol: str | None = None
    """How a probe was fitted; None for neighbours."""
    metrics: Path | None = None
    """File that the score was added to; None for an export."""


@dataclass(frozen=True, repr=False)
class EmbedResult(Result):
    """Table of features that `coma.embed` wrote, and what lies near what if that was asked for."""

    out: Path
    """Table, or the array of an .npy."""
    images: int
    """Number of images in it."""
    set_aside: int
    """Number of damaged images, which are not in it."""
    channels: int
    """Number of values of a vector."""
    dtype: str
    """Type of the values: float32 or float16."""
    splits: dict[str, int]
    """Number of images of each split, in the order of the rows."""
    model: str
    """Name of the backbone in timm."""
    weights: str
    """What its weights are from."""
    image_size: int
    """Side of the images in pixels."""
    device: str
    """Kind of device that computed them."""
    elapsed_s: float
    """Duration of this call, without the search for neighbours."""
    table: Path
    """Parquet file of keys, paths and labels: the table itself, or the one beside an .npy."""
    map_shape: tuple[int, int, int] | None = None
    """Height, width and channels of the patch maps; None without them."""
    images_per_s: float | None = None
    """Images a second; None if the table was there already."""
    step: int | None = None
    """Training step of a run's checkpoint or an export."""
    quarantine: Path | None = None
    """List of the damaged images with reasons; None if there are none."""
    neighbours: Path | None = None
    """Table of the nearest images of each."""
    duplicates: Path | None = None
    """Table of near-duplicate pairs."""
    pairs: int | None = None
    """Number of near-duplicate pairs."""
    closest: tuple[tuple[str, str, float], ...] | None = None
    """The closest of these pairs: two paths and their similarity."""
    outliers: tuple[tuple[str, float], ...] | None = None
    """Images farthest from all others, with their mean similarity to their neighbours."""
    picture: Path | None = None
    """Contact sheet of neighbours, near-duplicates and outliers."""

    def vectors(self) -> NDArray[floating[Any]]:
        """Read the vectors [images, channels], in the order of the table."""
        from coma.embedding.table import read_vectors

        return read_vectors(self.out)

    def paths(self) -> list[str]:
        """Read the paths of the images, in the order of the table."""
        from pyarrow.parquet import read_table

        paths: list[str] = read_table(self.table, columns=["path"])["path"].to_pylist()
        return paths


@dataclass(frozen=True, repr=False)
class PictureResult(Result):
    """Picture that `coma.reconstruct` drew."""

    picture: Path
    """PNG file."""

    def _repr_png_(self) -> bytes | None:
        """Return the picture; notebooks call this."""
        return self.picture.read_bytes() if self.picture.is_file() else None


@dataclass(frozen=True, repr=False)
class ExportResult(Result):
    """timm model that `coma.export` wrote."""

    export: Path
    """Folder with the weights, the configuration and the model card."""
    model: str
    """Name of the model in timm."""
    parameters: int
    """Number of parameters of the exported model."""
    features: int
    """Number of channels of the last stage's features."""
    step: int
    """Training step of the checkpoint."""
    decoder: bool
    """Whether the decoder is included."""
    load: str
    """Code that loads it."""
    classes: int | None = None
    """Number of classes of a fine-tuned classifier."""
    onnx: Path | None = None
    """ONNX file, if one was asked for."""
    url: str | None = None
    """Address of the repository on the Hub that it was pushed to."""
    commit: str | None = None
    """Commit there."""
