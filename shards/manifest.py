"""The index of samples: one parquet row a sample, in tar order. Its row number is the sample's global id.

Legend: N samples, S shards of one split.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from coma.errors import DataError
from coma.shards.files import asking, folder_at, is_remote, is_there, reaching, without_credentials

MANIFEST_NAME = "manifest.parquet"
INFO_NAME = "_info.json"
QUARANTINE_NAME = "quarantine.parquet"
CARD_NAME = "README.md"
WORK_FOLDER = ".coma-shard"
_QUESTIONS = 16  # that a store is asked at a time
CLASS_NAMES_KEY = b"coma.class_names"

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),  # file name, in the manifest's own folder
        pa.field("offset", pa.int64(), nullable=False),  # of the image's first byte, in the tar
        pa.field("size", pa.int64(), nullable=False),  # of the image, bytes
        pa.field("width", pa.int32(), nullable=False),  # as displayed, after EXIF orientation
        pa.field("height", pa.int32(), nullable=False),
        pa.field("format", pa.string(), nullable=False),  # "jpeg", "png", ...: what the bytes are
        pa.field("label", pa.int32(), nullable=True),  # null in every row, or in none
        pa.field("xxh3_64", pa.uint64(), nullable=False),  # of the image's bytes
        pa.field("source", pa.string(), nullable=False),  # path in the source folder
    ]
)
_ARRAY_COLUMNS = ("shard", "offset", "size", "width", "height", "label", "xxh3_64")


@dataclass(frozen=True, eq=False)
class Manifest:
    """One split of a sharded data set, as arrays; the strings stay in the file until asked for."""

    folder: Path
    """The split's folder, which holds the shards."""
    split: str
    shards: tuple[str, ...]
    """[S] file names, in order."""
    shard_id: npt.NDArray[np.int32]
    """[N] index into `shards`, non-decreasing."""
    offset: npt.NDArray[np.int64]
    """[N] where the image's bytes start in their tar."""
    size: npt.NDArray[np.int64]
    """[N] how many bytes the image has."""
    width: npt.NDArray[np.int32]
    """[N] pixels, as displayed."""
    height: npt.NDArray[np.int32]
    label: npt.NDArray[np.int32] | None
    """[N] index into `class_names`, or None for an unlabelled split."""
    xxh3_64: npt.NDArray[np.uint64]
    """[N] hash of the image's bytes."""
    class_names: tuple[str, ...] | None
    fingerprint: str
    """16 hex digits that change whenever the data would."""

    def __len__(self) -> int:
        """N."""
        return len(self.offset)

    @cached_property
    def shard_lengths(self) -> npt.NDArray[np.int64]:
        """[S] samples in each shard."""
        return np.bincount(self.shard_id, minlength=len(self.shards)).astype(np.int64)

    def keys(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        """The WebDataset keys of these samples, in the order asked for."""
        return self._strings("key", indices)

    def sources(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        """The paths that these samples had in the source folder, in the order asked for."""
        return self._strings("source", indices)

    def formats(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        """What the bytes of these samples are ("jpeg", "png", ...), in the order asked for."""
        return self._strings("format", indices)

    def _strings(self, column: str, indices: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"sample {wanted.max()} of {len(self)} in split {self.split}")
        found = [""] * len(wanted)
        with _opened(self.folder / MANIFEST_NAME) as source, pq.ParquetFile(source) as file:
            starts = np.cumsum(
                [0] + [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            )
            group_of = np.searchsorted(starts, wanted, side="right") - 1
            for group in np.unique(group_of):
                values = file.read_row_group(int(group), columns=[column]).column(column)
                for position in np.flatnonzero(group_of == group):
                    found[position] = values[int(wanted[position] - starts[group])].as_py()
        return found


def schema(class_names: Sequence[str] | None) -> pa.Schema:
    """The manifest's schema, with the class names in its metadata when there are any."""
    if class_names is None:
        return SCHEMA
    return SCHEMA.with_metadata({CLASS_NAMES_KEY: json.dumps(list(class_names)).encode()})


def read_manifest(data: Path, split: str = "train") -> Manifest:
    """Read the index of one split and check it against the names and sizes (not the bytes) of its shards.

    `data` is a data set (the folder that `coma shard` wrote) or one of its split folders, and then `split` is
    not looked at. Raises DataError when there is no such split, when `coma shard` has not finished, or when a
    row points outside its folder or past its shard's end.
    """
    manifest = load_manifest(data, split)
    paths = [manifest.folder / shard for shard in manifest.shards]
    if is_remote(manifest.folder):
        with ThreadPoolExecutor(_QUESTIONS) as pool:  # each takes a round trip
            sizes = list(pool.map(_shard_bytes, paths))
    else:
        sizes = [_shard_bytes(path) for path in paths]
    past = manifest.offset + manifest.size > np.asarray(sizes, dtype=np.int64)[manifest.shard_id]
    if past.any():
        shard = manifest.shard_id[int(np.argmax(past))]
        raise DataError(
            f"{manifest.folder / manifest.shards[shard]} is cut short: it has {sizes[shard]} bytes and its "
            "manifest points past them; copy it again, or shard again into a new folder"
        )
    return manifest


def load_manifest(data: Path, split: str = "train") -> Manifest:
    """Read the index as `read_manifest` does, without looking at the shards."""
    try:
        folder = _split_folder(folder_at(data), split)
    except OSError as error:
        raise DataError(f"{without_credentials(str(data))}: {error.strerror or error}") from None
    path = folder / MANIFEST_NAME
    try:
        table = asking(path, lambda: _array_columns(path))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a manifest: {str(error).splitlines()[0]}") from error
    for name in _ARRAY_COLUMNS:
        want = SCHEMA.field(name)
        column = table.column(name)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if kind != want.type or (not want.nullable and column.null_count):
            raise DataError(f"{path}: column {name} is {kind}, not {want.type} without nulls; shard again")
    if table.num_rows == 0:
        raise DataError(f"{path} lists no samples")

    shard_column = table.column("shard").unify_dictionaries().combine_chunks()
    shards = tuple(shard_column.dictionary.to_pylist())
    shard_id = shard_column.indices.to_numpy(zero_copy_only=False).astype(np.int32)
    for shard in shards:
        if not shard or shard in (".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
            raise DataError(f"{path} names the shard {shard!r}, which is not a plain file name beside it")
    label_column = table.column("label")
    if label_column.null_count not in (0, table.num_rows):
        raise DataError(f"{path}: {label_column.null_count} of {table.num_rows} labels are missing")
    label = None if label_column.null_count else label_column.to_numpy()
    offset, size, width, height, xxh3_64 = (
        table.column(name).to_numpy() for name in ("offset", "size", "width", "height", "xxh3_64")
    )
    if (np.diff(shard_id) < 0).any() or min(
        offset.min(), size.min() - 1, width.min() - 1, height.min() - 1
    ) < 0:
        raise DataError(
            f"{path} is damaged: its rows are out of order or hold sizes that cannot be; shard again"
        )
    metadata = table.schema.metadata or {}
    class_names = tuple(json.loads(metadata[CLASS_NAMES_KEY])) if CLASS_NAMES_KEY in metadata else None
    if label is not None and (
        label.min() < 0 or (class_names is not None and label.max() >= len(class_names))
    ):
        raise DataError(f"{path}: a label lies outside its {len(class_names or ())} classes; shard again")
    return Manifest(
        folder=folder,
        split=folder.name,
        shards=shards,
        shard_id=shard_id,
        offset=offset,
        size=size,
        width=width,
        height=height,
        label=label,
        xxh3_64=xxh3_64,
        class_names=class_names,
        fingerprint=_fingerprint(shards, shard_id, offset, size, xxh3_64, label),
    )


def _array_columns(path: Path) -> pa.Table:
    with _opened(path) as source:
        return pq.read_table(source, columns=list(_ARRAY_COLUMNS), read_dictionary=["shard"])


def read_info(data: Path) -> dict[str, object]:
    """Read a complete data set's `_info.json`. Raises DataError if it is missing or not one of ours."""
    path = folder_at(data) / INFO_NAME
    try:
        info = json.loads(asking(path, path.read_bytes))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(info, dict) or not isinstance(info.get("splits"), dict):
        raise DataError(f"{path} does not describe a sharded data set")
    return info


def split_names(data: Path) -> list[str]:
    """The splits of a complete data set, train first. Raises DataError when there are none."""
    info = read_info(data)
    splits = info["splits"]
    assert isinstance(splits, dict)
    names = [name for name in splits if is_there(folder_at(data) / name / MANIFEST_NAME)]
    if not names:
        raise DataError(f"{data} has no split with a {MANIFEST_NAME}; make one with: coma shard SOURCE")
    return sorted(names, key=lambda name: (name != "train", name))


def find_data(folder: Path) -> Path:
    """Find the one sharded data set here: `folder` itself or one of its children.

    Raises DataError if there is none or there are several, naming them.
    """
    if _is_data(folder):
        return folder
    children = sorted(child for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []
    found = [child for child in children if _is_data(child)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(child.name for child in found[:5]) + (", ..." if len(found) > 5 else "")
        raise DataError(
            f"{len(found)} sharded data sets in {folder.resolve()}: {names}; name the one you mean"
        )
    raise DataError(f"no sharded data set in {folder.resolve()}; make one with: coma shard FOLDER_OF_IMAGES")


def _is_data(folder: Path) -> bool:
    try:
        return (folder / INFO_NAME).is_file() and bool(split_names(folder))
    except DataError:
        return False


def _split_folder(data: Path, split: str) -> Path:
    if is_there(data / MANIFEST_NAME):
        return data.absolute()
    if not is_there(data / INFO_NAME):  # asked first: a web server need not list its folders
        if not data.is_dir():
            what = "it is a file" if data.exists() else "no such folder"
            raise DataError(f"no sharded data set at {without_credentials(str(data))}: {what}")
        if (data / WORK_FOLDER).is_dir():
            raise DataError(
                f"{data} is not complete: run its `coma shard` again, it goes on where it stopped"
            )
        place = without_credentials(str(data))
        raise DataError(f"{place} holds no shards (no {INFO_NAME}); make them with: coma shard {place}")
    names = split_names(data)
    if split not in names:
        raise DataError(f"{data} has no split {split!r}; it has {', '.join(names)}")
    return (data / split).absolute()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with reaching(path):
        if not is_remote(path):
            with pa.memory_map(str(path)) as file:
                yield file
            return
        with path.open("rb") as file:
            yield file


def _shard_bytes(path: Path) -> int:
    try:
        status = asking(path, path.stat)
    except OSError as error:
        raise DataError(
            f"shard {without_credentials(str(path))} cannot be read: {error.strerror or error}; "
            "copy it again, or shard again"
        ) from error
    return status.st_size


def _fingerprint(shards: tuple[str, ...], *arrays: npt.NDArray[np.generic] | None) -> str:
    digest = xxhash.xxh3_64(json.dumps(shards).encode())
    for array in arrays:
        digest.update(b"none" if array is None else np.ascontiguousarray(array).data)
    return digest.hexdigest()
