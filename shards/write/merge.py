"""The end of a run: the shards' parts become the manifests, the quarantine and `_info.json`."""

import json
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from coma.shards.files import reaching, replacing, write_atomically
from coma.shards.manifest import INFO_NAME, MANIFEST_NAME, QUARANTINE_NAME, load_manifest, schema
from coma.shards.write.layout import ShardPlan
from coma.shards.write.state import parts_folder

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),  # in the source folder
        pa.field("reason", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
    ]
)
_ROW_GROUP_ROWS = 65_536


@dataclass(frozen=True)
class Split:
    """A split's plan and the class names of its labels, None if it has no labels."""

    name: str
    shards: list[ShardPlan]
    class_names: tuple[str, ...] | None


class _Rows:
    """A parquet file written in row groups of even size, whatever comes in."""

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

    def close(self) -> None:
        self.flush()
        self.writer.close()


def merge(out: Path, splits: list[Split]) -> tuple[Counter[str], Counter[str]]:
    """Write each split's manifest.parquet and the quarantine.

    Returns how many images were set aside, and how many were converted, by kind. A split without a single good
    image gets no manifest.
    """
    reasons: Counter[str] = Counter()
    converted: Counter[str] = Counter()
    with replacing(out / QUARANTINE_NAME) as quarantine_file:
        quarantine = _Rows(quarantine_file, QUARANTINE_SCHEMA)
        for split in splits:
            kept = 0
            with replacing(out / split.name / MANIFEST_NAME) as manifest_file:
                manifest_schema = schema(split.class_names)
                manifest = _Rows(manifest_file, manifest_schema)
                for plan in split.shards:
                    path = parts_folder(out) / f"{plan.name}.parquet"
                    with reaching(path), path.open("rb") as file:
                        part = pq.read_table(file).replace_schema_metadata(None)
                    is_bad = pc.is_valid(part["reason"])
                    good = part.filter(pc.invert(is_bad)).select(manifest_schema.names)
                    bad = part.filter(is_bad)
                    manifest.add(good)
                    quarantine.add(
                        pa.table([bad["source"], bad["reason"], bad["bytes"]], names=QUARANTINE_SCHEMA.names)
                    )
                    kept += len(good)
                    reasons.update(map(kind_of, bad["reason"].to_pylist()))
                    converted.update(map(kind_of, part["converted"].drop_null().to_pylist()))
                manifest.close()
            if not kept:
                (out / split.name / MANIFEST_NAME).unlink()
        quarantine.close()
    return reasons, converted


def kind_of(reason: str) -> str:
    """The kind of a reason: what stands before its colon."""
    return reason.split(":", 1)[0]


def write_info(
    out: Path,
    splits: list[Split],
    record: dict[str, Any],
    reasons: Counter[str],
    converted: Counter[str],
    class_words: tuple[str, ...] | None,
) -> dict[str, Any]:
    """Write `_info.json`, which says that the data set is complete: timm's fields, and ours under "coma"."""
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
        }
    class_names = next((split.class_names for split in splits if split.class_names is not None), None)
    info = {
        "splits": described,
        "coma": {
            "version": version("coma"),
            "seed": record["seed"],
            "classes": list(class_names) if class_names is not None else None,
            "class_words": list(class_words) if class_words is not None else None,
            "splits": ours,
            "found": record["images"],
            "set_aside": dict(sorted(reasons.items())),
            "converted": dict(sorted(converted.items())),
            "plan": record,
        },
    }
    write_atomically(out / INFO_NAME, json.dumps(info, indent=2, ensure_ascii=False) + "\n")
    return info
