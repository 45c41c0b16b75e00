"""Shards: raw images in, WebDataset tars and a manifest out.

sources/          listing of the images of a source: folders, tars, parquet, lists of paths
images/           one image: format, checks, measures, conversion
write/            `coma shard`: options, layout, worker processes, resuming, merging
manifest/         reading of manifests and the quarantine
index/            `coma index`: manifests for tars that somebody else wrote
check/            `coma verify`
describe/         `coma inspect`, the data card, the contact sheet
files.py          atomic writes, object stores, hashes of files
locks.py          file locks
option.py         options of commands as fields of dataclasses
tar.py            headers and members of tars
child_process.py  processes that serve requests
byte_sizes.py     sizes such as 256MiB
splitmix64.py     the hash behind every random order
"""
