"""Manifest of a data set: one parquet row per sample, in tar order; the row number is the sample's global id."""

from coma.shards.manifest.manifest import (
    CARD_NAME,
    INFO_NAME,
    MANIFEST_NAME,
    WORK_FOLDER,
    Manifest,
    find_data,
    load_manifest,
    load_manifests,
    read_info,
    read_manifest,
    schema,
    split_names,
)
from coma.shards.manifest.quarantine import QUARANTINE_NAME

__all__ = [
    "CARD_NAME",
    "INFO_NAME",
    "MANIFEST_NAME",
    "QUARANTINE_NAME",
    "WORK_FOLDER",
    "Manifest",
    "find_data",
    "load_manifest",
    "load_manifests",
    "read_info",
    "read_manifest",
    "schema",
    "split_names",
]
