"""The end of a run: part files are merged into the manifests, the quarantine and `_info.json`."""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from coma.errors import DataError
from coma.installed.versions import coma_version
from coma.shards.files import is_remote, open_for_arrow, replacing, write_atomically
from coma.shards.images.options import PixelOptions
from coma.shards.images.pixel_counts import PixelCounts
from coma.shards.manifest import INFO_NAME, MANIFEST_NAME, load_manifest, schema
from coma.shards.manifest.mask_coding import MaskCoding
from coma.shards.manifest.pixel_coding import PixelCoding
from coma.shards.manifest.quarantine import PASSED_OVER_NAME, QUARANTINE_NAME, QUARANTINE_SCHEMA, reason_kind
from coma.shards.sources.listing import PassedOver, printable
from coma.shards.write.layout import ShardLayout
from coma.shards.write.one_shard import counts_file
from coma.shards.write.resume import parts_folder

log = logging.getLogger(__name__)

_ROW_GROUP_ROWS = 65_536
_CHANNELS_WAY_OUT = re.compile(r"\(coma shard --channels (\d+) takes it as it is\)$", re.M)


@dataclass(frozen=True)
class SplitParts:
    """A split whose shards are all finished."""

    name: str
    shards: list[ShardLayout]
    class_names: tuple[str, ...] | None
    """Class names of its labels; None if it has no labels."""
    masks: MaskCoding | None = None
    """Classes of its masks, which the masks themselves say if the coding does not; None if it has none."""
    pixels: PixelOptions = field(default_factory=PixelOptions)
    """What its images are."""


class _ParquetFile:
    """A parquet file that is written in row groups of even size, whatever the size of the tables added to it."""

    def __init__(self, file: Any, file_schema: pa.Schema) -> None:
        self.writer = pq.ParquetWriter(file, file_schema, compression="zstd")
        self.schema = file_schema
        self.waiting: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        self.waiting.append(table.cast(self.schema))
        if sum(map(len, self.waiting)) >= _ROW_GROUP_ROWS:
            self.flush()

    def flush(self) -> None:
        if self.waiting:
            self.writer.write_table(pa.concat_tables(self.waiting), row_group_size=_ROW_GROUP_ROWS)
        self.waiting = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Write what is left, or after an error close at least: the writer must not outlive its file."""
        try:
            if error is None:
                self.flush()
        finally:
            self.writer.close()


def finish(
    out: Path,
    source: object,
    splits: list[SplitParts],
    record: dict[str, Any],
    class_words: Sequence[str] | None = None,
    passed_over: PassedOver | None = None,
) -> None:
    """Merge the part files of all shards and complete the data set.

    A split without a single good image is left out, with a warning. Raises DataError, which names `source`, if all
    `record["images"]` were set aside.
    """
    splits = _with_mask_classes(out, splits)
    with _table_of_passed_over(out, passed_over or PassedOver()) as beside:
        reasons, converted, channels = _merge(out, splits, beside)
    if not is_remote(out):
        for split in splits:
            with suppress(OSError):
                (out / split.name).rmdir()  # fails unless the folder is empty: a split without a good image
                log.warning("all images of split %s were set aside: the split is left out", split.name)
    if channels and not {"channels", "index"} & record.keys():
        log.warning(
            "%s set aside for channels or depth; --channels %s takes such as they are",
            f"{channels.total():,} {'image is' if channels.total() == 1 else 'images are'}",
            channels.most_common(1)[0][0],
        )
    if sum(reasons.values()) == record["images"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in reasons.most_common(3))
        raise DataError(
            f"none of the {record['images']:,} {'tiles' if record.get('tile') else 'images'} of {source} is any good "
            f"({kinds}); {out / QUARANTINE_NAME} lists them"
        )
    _write_info(out, splits, record, reasons, converted, beside.kinds, class_words)


class _Beside:
    """The table of the files that were passed over, and how many there are of each kind."""

    def __init__(self, table: _ParquetFile) -> None:
        self.table = table
        self.kinds: Counter[str] = Counter()

    def add(self, paths: Any, kinds: Any, sizes: Any) -> None:
        """Add columns of equal length."""
        table = pa.table([paths, kinds, sizes], names=QUARANTINE_SCHEMA.names)
        self.table.add(table)
        self.kinds.update(table["reason"].to_pylist())


@contextmanager
def _table_of_passed_over(out: Path, listed: PassedOver) -> Iterator[_Beside]:
    """Write the table of what was passed over: what the source's listing says, and what the block adds to it."""
    with replacing(out / PASSED_OVER_NAME) as file, _ParquetFile(file, QUARANTINE_SCHEMA) as table:
        beside = _Beside(table)
        order = sorted(range(len(listed)), key=lambda i: os.fsencode(listed.paths[i]))
        for start in range(0, len(order), _ROW_GROUP_ROWS):
            rows = order[start : start + _ROW_GROUP_ROWS]
            paths = pa.array([printable(listed.paths[i]) for i in rows], pa.string())
            kinds = pa.array([listed.kinds[i] for i in rows], pa.string())
            beside.add(paths, kinds, pa.array([listed.sizes[i] for i in rows], pa.int64()))
        yield beside


def _with_mask_classes(out: Path, splits: list[SplitParts]) -> list[SplitParts]:
    """Return the splits with the classes of their masks, which are as many as the masks hold if nothing names them."""
    masked = [split for split in splits if split.masks is not None]
    if not masked:
        return splits
    pixels: set[int] = set()
    for split in masked:
        for shard in split.shards:
            with open_for_arrow(parts_folder(out) / f"{shard.name}.parquet") as part:
                pixels.update(
                    pq.read_table(part, columns=["mask_last_class"])["mask_last_class"].drop_null().to_pylist()
                )
    count = max(pixels, default=-1) + 1
    if any(split.masks is not None and split.masks.classes is None for split in masked):
        log.info("the masks hold classes up to %d, so there are %d; --mask-classes says otherwise", count - 1, count)
    return [
        replace(split, masks=None if split.masks is None else split.masks.with_classes(max(1, count)))
        for split in splits
    ]


def _merge(out: Path, splits: list[SplitParts], beside: _Beside) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Write each split's manifest and the quarantine.

    Returns the numbers of images that were set aside, and of those that were converted, by kind; and of those set aside
    that `--channels N` takes, by N.
    """
    reasons: Counter[str] = Counter()
    channels: Counter[str] = Counter()
    converted: Counter[str] = Counter()
    with replacing(out / QUARANTINE_NAME) as file, _ParquetFile(file, QUARANTINE_SCHEMA) as quarantine:
        for split in splits:
            kept, manifest_schema = 0, schema(split.class_names, split.masks, _pixel_coding(out, split))
            with (
                replacing(out / split.name / MANIFEST_NAME) as manifest_file,
                _ParquetFile(manifest_file, manifest_schema) as manifest,
            ):
                for shard in split.shards:
                    path = parts_folder(out) / f"{shard.name}.parquet"
                    with open_for_arrow(path) as part_file:
                        part = pq.read_table(part_file).replace_schema_metadata(None)
                    if "passed_over" in part.column_names:  # not in those of older versions
                        is_beside = pc.is_valid(part["passed_over"])
                        others = part.filter(is_beside)
                        beside.add(others["source"], others["passed_over"], others["bytes"])
                        part = part.filter(pc.invert(is_beside))
                    is_bad = pc.is_valid(part["reason"])
                    good = part.filter(pc.invert(is_bad)).select(manifest_schema.names)
                    bad = part.filter(is_bad)
                    manifest.add(good)
                    columns = [bad["source"], bad["reason"], bad["bytes"]]
                    quarantine.add(pa.table(columns, names=QUARANTINE_SCHEMA.names))
                    kept += len(good)
                    reasons.update(map(reason_kind, bad["reason"].to_pylist()))
                    channels.update(_CHANNELS_WAY_OUT.findall("\n".join(bad["reason"].to_pylist())))
                    for name in ("converted", "mask_converted"):
                        if name in part.column_names:  # not in those of older versions
                            converted.update(map(reason_kind, part[name].drop_null().to_pylist()))
            if not kept:
                (out / split.name / MANIFEST_NAME).unlink()
    return reasons, converted, channels


def _pixel_coding(out: Path, split: SplitParts) -> PixelCoding | None:
    """Return channels, type and statistics of a split's values; None for 8-bit RGB, or without a good image."""
    if split.pixels.channels is None or split.pixels.dtype is None:
        return None
    counts = PixelCounts(split.pixels.channels, split.pixels.dtype)
    for shard in split.shards:
        with open_for_arrow(counts_file(parts_folder(out), shard.name)) as file:
            counts.add_table(pq.read_table(file))
    return counts.coding() if counts.counts.any() else None


def _write_info(
    out: Path,
    splits: list[SplitParts],
    record: dict[str, Any],
    reasons: Counter[str],
    converted: Counter[str],
    passed_over: Counter[str],
    class_words: Sequence[str] | None,
) -> None:
    """Write `_info.json`, which marks the data set as complete: timm's fields, and ours under "coma"."""
    described: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    for split in splits:
        if not (out / split.name / MANIFEST_NAME).is_file():
            continue
        manifest = load_manifest(out / split.name)
        described[split.name] = {
            "name": split.name,
            "num_samples": len(manifest),
            "filenames": [f"{split.name}/{shard}" for shard in manifest.shards],
            "shard_lengths": manifest.shard_lengths.tolist(),
        }
        ours[split.name] = {
            "fingerprint": manifest.fingerprint,
            "labelled": manifest.label is not None,
            "bytes": sum((out / split.name / shard).stat().st_size for shard in manifest.shards),
            **({} if manifest.pixels is None else {"pixels": manifest.pixels.summary()}),
        }
    class_names = next((split.class_names for split in splits if split.class_names is not None), None)
    masks = next((split.masks for split in splits if split.masks is not None), None)
    info = {
        "splits": described,
        "coma": {
            "version": coma_version(),
            "seed": record["seed"],
            "classes": list(class_names) if class_names is not None else None,
            "class_words": list(class_words) if class_words is not None else None,
            **({} if masks is None else {"masks": masks.to_json()}),
            "splits": ours,
            "found": record["images"],
            "set_aside": dict(sorted(reasons.items())),
            "converted": dict(sorted(converted.items())),
            "passed_over": dict(sorted(passed_over.items())),
            "plan": record,
        },
    }
    write_atomically(out / INFO_NAME, json.dumps(info, indent=2, ensure_ascii=False) + "\n")
