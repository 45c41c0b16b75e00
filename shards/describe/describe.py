"""Description of a data set: counts, sizes, formats, class balance, colours, and images that were set aside."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from coma.errors import DataError
from coma.shards.describe.contact_sheet import read_displayed
from coma.shards.describe.masks import MaskShares, mask_shares
from coma.shards.files import folder_at, open_for_arrow
from coma.shards.manifest import (
    INFO_NAME,
    MANIFEST_NAME,
    QUARANTINE_NAME,
    Manifest,
    load_manifests,
    read_info,
    read_manifest,
)
from coma.shards.manifest.pixel_coding import PixelCoding
from coma.shards.manifest.quarantine import count_reasons

MEASURED_IMAGES = 512
_MEASURED_PX = 224
_CARD_MASKS = 512  # measured where no colours are


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest value."""

    min: int
    median: int
    max: int

    def __str__(self) -> str:
        """Return the values as "min / median / max"."""
        return f"{self.min:,} / {self.median:,} / {self.max:,}"


@dataclass(frozen=True)
class ClassBalance:
    """Distribution of a split's images over its classes, which include those that have a name but no image."""

    per_class: Spread
    smallest: str
    """The name of the first class that has the fewest images."""
    largest: str
    effective: float
    """Effective number of classes: the exponential of the entropy of the label."""
    counts: dict[str, int]
    """Images of every class, in the order of the labels."""


@dataclass(frozen=True)
class Channels:
    """Mean and standard deviation of red, green and blue in [0, 1], with the same weight for every image.

    They are measured on a random sample, whose JPEGs are decoded at a reduced size of at least 224 px.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    images: int
    """Number of images measured; fewer than asked for if some do not decode."""


@dataclass(frozen=True)
class SplitDescription:
    """Description of one split."""

    split: str
    samples: int
    shards: int
    shard_bytes: int
    """Bytes of all its tars."""
    image_bytes: Spread
    width: Spread
    height: Spread
    formats: dict[str, int]
    """Samples of each format, most frequent first."""
    labelled: bool
    classes: ClassBalance | None
    channels: Channels | None
    fingerprint: str
    masks: MaskShares | None = None
    """Classes of the masks; None: the split has none."""
    pixels: PixelCoding | None = None
    """Channels, type and statistics of the samples; None: they are 8-bit RGB images."""


@dataclass(frozen=True)
class Description:
    """Description of a data set."""

    data: Path
    splits: tuple[SplitDescription, ...]
    class_names: tuple[str, ...] | None
    """Names of the classes; None: labels without names, or no labels."""
    classes: tuple[str, ...]
    """Names of the classes, or where they have none the labels that occur as numbers; empty: no split has labels."""
    set_aside: dict[str, int]
    """Images in the quarantine by kind of reason, most frequent first."""
    converted: dict[str, int]
    """Images and masks whose bytes differ from the source's, by kind of reason."""
    mask_classes: tuple[str, ...]
    """Names of the classes of the masks; empty: there are no masks."""
    info: dict[str, Any]
    """The entry "coma" of `_info.json`; empty if there is none."""

    @property
    def tiles(self) -> str | None:
        """How the samples were cut from larger images: "of 512 px, cut from 3 images"; None if they were not."""
        record = self.info.get("plan")
        if not isinstance(record, dict) or record.get("tile") is None:
            return None
        images = int(record["tiled_images"])
        overlap = f" that share {record['overlap']} px" if record["overlap"] else ""
        return f"of {record['tile']} px{overlap}, cut from {images:,} {'image' if images == 1 else 'images'}"


def describe(data: Path, measured: int = MEASURED_IMAGES, seed: int = 0) -> Description:
    """Describe a data set, or one split's folder of it; `measured` images of each split are decoded for its colours.

    Raises DataError as `read_manifest` does.
    """
    data = folder_at(data)
    manifests = [read_manifest(manifest.folder) for manifest in load_manifests(data)]
    root = manifests[0].folder.parent
    about = read_info(root).get("coma") if (root / INFO_NAME).is_file() else None
    info = about if isinstance(about, dict) else {}
    class_names = next((manifest.class_names for manifest in manifests if manifest.class_names), None)
    return Description(
        data=data,
        splits=tuple(_describe_split(manifest, measured, seed) for manifest in manifests),
        class_names=class_names,
        classes=class_names or _labels(manifests),
        set_aside=_set_aside(root / QUARANTINE_NAME),
        converted=dict(info.get("converted") or {}),
        mask_classes=next((manifest.mask_classes for manifest in manifests if manifest.has_masks), ()),
        info=info,
    )


def as_json(description: Description) -> dict[str, Any]:
    """Return the description as plain JSON types."""
    result: dict[str, Any] = json.loads(json.dumps(asdict(description), default=str))
    del result["info"]
    if description.tiles is not None:
        names = ("tile", "overlap", "tiled_images")
        result["tiles"] = {name: description.info["plan"][name] for name in names}
    if not description.mask_classes:
        del result["mask_classes"]
        for split in result["splits"]:
            del split["masks"]
    for split, described in zip(result["splits"], description.splits, strict=True):
        del split["pixels"]
        split |= {} if described.pixels is None else {"pixels": described.pixels.summary()}
    result["splits"] = {split.pop("split"): split for split in result["splits"]}
    return result


def _describe_split(manifest: Manifest, measured: int, seed: int) -> SplitDescription:
    return SplitDescription(
        split=manifest.split,
        samples=len(manifest),
        shards=len(manifest.shards),
        shard_bytes=_total_bytes([manifest.folder / shard for shard in manifest.shards]),
        image_bytes=_spread(manifest.size),
        width=_spread(manifest.width),
        height=_spread(manifest.height),
        formats=_formats(manifest),
        labelled=manifest.label is not None,
        classes=None if manifest.label is None else _balance(manifest.label, manifest.class_names),
        channels=_channels(manifest, measured, seed) if measured and manifest.pixels is None else None,
        fingerprint=manifest.fingerprint,
        masks=mask_shares(manifest, measured or _CARD_MASKS, seed) if manifest.has_masks else None,
        pixels=manifest.pixels,
    )


def _labels(manifests: Sequence[Manifest]) -> tuple[str, ...]:
    """Return the labels that occur in any of the splits, in the order of numbers."""
    labels = [np.unique(manifest.label) for manifest in manifests if manifest.label is not None]
    return tuple(map(str, np.unique(np.concatenate(labels)).tolist())) if labels else ()


def _total_bytes(files: Sequence[Path]) -> int:
    with ThreadPoolExecutor(16) as pool:  # requests to a store take a round trip each
        return sum(pool.map(lambda file: file.stat().st_size, files))


def _spread(values: npt.NDArray[Any]) -> Spread:
    return Spread(int(values.min()), int(np.median(values)), int(values.max()))


def _formats(manifest: Manifest) -> dict[str, int]:
    path = manifest.folder / MANIFEST_NAME
    with open_for_arrow(path) as file:
        column = pq.read_table(file, columns=["format"], read_dictionary=["format"])["format"]
    counts = {str(entry["values"]): int(entry["counts"]) for entry in pc.value_counts(column).to_pylist()}
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def _balance(label: npt.NDArray[np.int32], class_names: Sequence[str] | None) -> ClassBalance:
    if class_names is None:  # labels need not be consecutive
        values, counts = np.unique(label, return_counts=True)
        names: Sequence[str] = list(map(str, values.tolist()))
    else:
        names, counts = class_names, np.bincount(label, minlength=len(class_names))
    share = counts[counts > 0] / len(label)
    return ClassBalance(
        per_class=_spread(counts),
        smallest=names[int(counts.argmin())],
        largest=names[int(counts.argmax())],
        effective=float(np.exp(-(share * np.log(share)).sum())),
        counts=dict(zip(names, counts.tolist(), strict=True)),
    )


def _channels(manifest: Manifest, measured: int, seed: int) -> Channels | None:
    count = min(measured, len(manifest))
    rows = np.sort(np.random.default_rng(seed).choice(len(manifest), count, replace=False))

    def moments(row: int) -> npt.NDArray[np.float64] | None:
        """Return the means [2, 3] of x and of x squared for each colour."""
        image = read_displayed(manifest, row, _MEASURED_PX)
        if image is None:
            return None
        histogram = np.asarray(image.histogram(), np.float64).reshape(3, 256) / (image.width * image.height)
        levels = np.arange(256) / 255
        return np.stack([histogram @ levels, histogram @ levels**2])

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        measures = [each for each in pool.map(moments, rows.tolist()) if each is not None]
    if not measures:
        return None
    mean, square = np.mean(measures, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return Channels(_rgb(mean), _rgb(std), len(measures))


def _rgb(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    red, green, blue = (round(float(value), 4) for value in values)
    return red, green, blue


def _set_aside(quarantine: Path) -> dict[str, int]:
    if not quarantine.is_file():
        return {}
    try:
        counts = count_reasons(quarantine)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{quarantine} cannot be read: {str(error).splitlines()[0]}") from error
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))
