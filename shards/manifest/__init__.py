"""Manifest of a data set: one parquet row per sample, in tar order; the row number is the sample's global id."""

from coma.shards.manifest.manifest import CARD_NAME as CARD_NAME
from coma.shards.manifest.manifest import INFO_NAME as INFO_NAME
from coma.shards.manifest.manifest import MANIFEST_NAME as MANIFEST_NAME
from coma.shards.manifest.manifest import WORK_FOLDER as WORK_FOLDER
from coma.shards.manifest.manifest import Manifest as Manifest
from coma.shards.manifest.manifest import chosen_data as chosen_data
from coma.shards.manifest.manifest import find_data as find_data
from coma.shards.manifest.manifest import load_manifest as load_manifest
from coma.shards.manifest.manifest import load_manifests as load_manifests
from coma.shards.manifest.manifest import read_info as read_info
from coma.shards.manifest.manifest import read_manifest as read_manifest
from coma.shards.manifest.manifest import schema as schema
from coma.shards.manifest.manifest import split_names as split_names
from coma.shards.manifest.mixture import Mixture as Mixture
from coma.shards.manifest.mixture import read_mixture as read_mixture
from coma.shards.manifest.quarantine import QUARANTINE_NAME as QUARANTINE_NAME
