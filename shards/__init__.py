"""Shards: raw images in, WebDataset tars and a manifest out.

sources/    what people have (folders, tars, parquet, lists), listed as named images
images/     one image: identify, check, measure, re-encode
write/      the tars: options, layout, worker processes, merging, resuming
manifest/   the index of samples, one parquet row a sample
index/      a manifest for WebDataset tars of others
check/      `coma verify`
describe/   `coma inspect`, the data card, the contact sheet
files.py    files that are whole or absent, locally and in object stores
tar.py      tar members, written and walked
option.py   options of commands as fields of dataclasses, for all rooms
units.py    sizes in bytes as people write them
"""
