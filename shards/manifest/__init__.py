"""Manifest of a data set: one parquet row a sample, in tar order; the row number is the sample's global id."""

from coma.shards.manifest.manifest import (
    CARD_NAME,
    INFO_NAME,
    MANIFEST_NAME,
    QUARANTINE_NAME,
    WORK_FOLDER,
    Manifest,
    find_data,
    load_manifest,
    read_info,
    read_manifest,
    schema,
    split_names,
)

__all__ = [
    "CARD_NAME",
    "INFO_NAME",
    "MANIFEST_NAME",
    "QUARANTINE_NAME",
    "WORK_FOLDER",
    "Manifest",
    "find_data",
    "load_manifest",
    "read_info",
    "read_manifest",
    "schema",
    "split_names",
]
