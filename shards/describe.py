"""What is in a data set: counts, sizes, formats, what was set aside; and a look at some of its images."""

import io
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from coma.errors import DataError, UsageError
from coma.shards.files import write_atomically
from coma.shards.manifest import MANIFEST_NAME, QUARANTINE_NAME, Manifest, read_manifest
from coma.shards.plan import shuffled
from coma.shards.verify import load_manifests


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest."""

    min: int
    median: int
    max: int

    def __str__(self) -> str:
        """As "min / median / max"."""
        return f"{self.min:,} / {self.median:,} / {self.max:,}"


@dataclass(frozen=True)
class SplitDescription:
    """One split, in numbers."""

    split: str
    samples: int
    shards: int
    shard_bytes: int
    """Of all its tars together."""
    image_bytes: Spread
    width: Spread
    height: Spread
    formats: dict[str, int]
    """Samples of each format, the commonest first."""
    labelled: bool
    samples_per_class: Spread | None
    fingerprint: str


@dataclass(frozen=True)
class Description:
    """A data set, in numbers."""

    data: Path
    splits: tuple[SplitDescription, ...]
    class_names: tuple[str, ...] | None
    set_aside: dict[str, int]
    """Source images in the quarantine, by kind of reason."""


def describe(data: Path) -> Description:
    """Describe a data set, or one split of it. Raises DataError as `read_manifest` does."""
    manifests = [read_manifest(manifest.folder) for manifest in load_manifests(data)]
    quarantine = manifests[0].folder.parent / QUARANTINE_NAME
    reasons: Counter[str] = Counter()
    if quarantine.is_file():
        try:
            column = pq.read_table(quarantine, columns=["reason"])["reason"]
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{quarantine} cannot be read: {str(error).splitlines()[0]}") from error
        reasons.update(reason.split(":")[0] for reason in column.to_pylist())
    class_names = next((manifest.class_names for manifest in manifests if manifest.class_names), None)
    return Description(
        Path(data), tuple(map(_described, manifests)), class_names, dict(reasons.most_common())
    )


def contact_sheet(
    data: Path, split: str = "train", images: int = 64, seed: int = 0, cell_px: int = 112
) -> Image.Image:
    """Lay out a random choice of a split's images in a square grid, each whole in a cell, as displayed."""
    manifest = read_manifest(data, split)
    rows = shuffled(len(manifest), seed, "contact sheet")[:images]
    columns = int(np.ceil(np.sqrt(len(rows))))
    gap_px = 4
    pitch_px = cell_px + gap_px
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (columns * pitch_px + gap_px, lines * pitch_px + gap_px), "white")
    for place, row in enumerate(np.sort(rows)):
        cell = ImageOps.contain(_image(manifest, int(row)), (cell_px, cell_px))
        left = gap_px + place % columns * pitch_px + (cell_px - cell.width) // 2
        top = gap_px + place // columns * pitch_px + (cell_px - cell.height) // 2
        sheet.paste(cell, (left, top))
    return sheet


def write_contact_sheet(data: Path, path: Path, split: str = "train") -> None:
    """Write `contact_sheet` as a PNG. Raises UsageError if `path` cannot be written."""
    sheet = contact_sheet(data, split)
    png = io.BytesIO()
    sheet.save(png, "PNG")
    try:
        write_atomically(path, png.getvalue())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def as_json(description: Description) -> dict[str, Any]:
    """The description as plain JSON types."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        if hasattr(value, "__dataclass_fields__"):
            return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
        return value

    result: dict[str, Any] = json.loads(json.dumps(plain(description)))
    result["splits"] = {split.pop("split"): split for split in result["splits"]}
    return result


def _described(manifest: Manifest) -> SplitDescription:
    column = pq.read_table(manifest.folder / MANIFEST_NAME, columns=["format"], memory_map=True)["format"]
    counts = {str(entry["values"]): int(entry["counts"]) for entry in pc.value_counts(column).to_pylist()}
    label = manifest.label
    return SplitDescription(
        split=manifest.split,
        samples=len(manifest),
        shards=len(manifest.shards),
        shard_bytes=sum((manifest.folder / shard).stat().st_size for shard in manifest.shards),
        image_bytes=_spread(manifest.size),
        width=_spread(manifest.width),
        height=_spread(manifest.height),
        formats=dict(sorted(counts.items(), key=lambda entry: -entry[1])),
        labelled=label is not None,
        samples_per_class=None if label is None else _spread(np.unique(label, return_counts=True)[1]),
        fingerprint=manifest.fingerprint,
    )


def _spread(values: npt.NDArray[Any]) -> Spread:
    return Spread(int(values.min()), int(np.median(values)), int(values.max()))


def _image(manifest: Manifest, row: int) -> Image.Image:
    path = manifest.folder / manifest.shards[manifest.shard_id[row]]
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = os.pread(descriptor, int(manifest.size[row]), int(manifest.offset[row]))
    finally:
        os.close(descriptor)
    try:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (256, 256))  # a JPEG may decode smaller
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:
        raise DataError(
            f"{path}: sample {manifest.keys([row])[0]} does not decode; see: coma verify"
        ) from error
