"""Reading of manifests: the samples of a split as arrays, checked against the sizes of its shards.

Legend: N samples, S shards of one split.
"""

import json
import os
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from coma.errors import DataError, shell_command
from coma.shards.files import folder_at, is_remote, is_there, open_for_arrow, retrying, without_credentials
from coma.shards.manifest.column_files import load_columns
from coma.shards.manifest.columns import CLASS_NAMES_KEY, MASK_FIELDS, SCHEMA, columns_of, open_parquet
from coma.shards.manifest.mask_coding import IGNORED, MASKS_KEY, MaskCoding
from coma.shards.manifest.pixel_coding import PIXELS_KEY, PixelCoding

MANIFEST_NAME = "manifest.parquet"
INFO_NAME = "_info.json"
CARD_NAME = "README.md"
WORK_FOLDER = ".coma-shard"
_STORE_REQUESTS = 16  # at a time


@dataclass(frozen=True, eq=False)
class Manifest:
    """One split of a sharded data set as arrays. Strings stay in the parquet file until they are asked for.

    The arrays of a large manifest are memory-mapped (`column_files`), so avoid full passes over them at start-up.
    """

    folder: Path
    """The split's folder, which holds the shards."""
    split: str
    shards: tuple[str, ...]
    """[S] file names, in order."""
    shard_lengths: npt.NDArray[np.int64]
    """[S] samples in each shard."""
    least_bytes: npt.NDArray[np.int64]
    """[S] the least bytes that each shard may have, which is where its last image ends."""
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
    rows: npt.NDArray[np.int64] | None = None
    """[N] rows of the manifest file that the samples are, ascending; None: all of them."""
    mask_coding: MaskCoding | None = None
    """Which value of the masks' pixels is which class; None: the split has no masks."""
    mask_offset: npt.NDArray[np.int64] | None = None
    """[N] where the mask's bytes start in the image's tar, or None for a split without masks."""
    mask_size: npt.NDArray[np.int64] | None = None
    """[N] how many bytes the mask has."""
    mask_xxh3_64: npt.NDArray[np.uint64] | None = None
    """[N] hash of the mask's bytes."""
    pixels: PixelCoding | None = None
    """Channels, type and statistics of the samples; None: they are 8-bit RGB images."""

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.offset)

    @property
    def has_masks(self) -> bool:
        """Whether each sample has a segmentation mask."""
        return self.mask_coding is not None

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """Names of the classes of the masks by class id; empty for a split without masks."""
        return () if self.mask_coding is None else self.mask_coding.classes or ()

    @property
    def mask_ignore(self) -> int:
        """Class id, in a decoded mask, of pixels without a class: always 255."""
        return IGNORED

    @property
    def parts(self) -> tuple["Manifest", ...]:
        """The data sets that this is a mixture of (`coma.shards.manifest.Mixture`); by itself, this one."""
        return (self,)

    @property
    def place(self) -> str:
        """Where the split is, for messages."""
        return without_credentials(str(self.folder))

    @property
    def is_remote(self) -> bool:
        """Whether some of the shards lie in an object store."""
        return any(is_remote(part.folder) for part in self.parts)

    def home_of_shard(self, shard: int) -> "Manifest":
        """Return the data set that a shard is of: this one, if it is no mixture."""
        return self

    def shard_path(self, shard: int) -> Path:
        """Return where a shard is."""
        return self.home_of_shard(shard).folder / self.shards[shard]

    def siblings(self, sample: int) -> range:
        """Return the ids of the samples of a sample's own data set: all, if this is no mixture."""
        return range(len(self))

    def named(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        """Return the keys of these samples, in a mixture with the names of their data sets."""
        return self.keys(indices)

    def source_names(self, sample: int) -> dict[str, str]:
        """Return {"data_set": name} of a sample's data set in a mixture, where keys alone are not unique; else {}."""
        return {}

    def reconnected(self) -> "Manifest":
        """Return the manifest with a new connection to its store, for a process that was forked off."""
        return replace(self, folder=pickle.loads(pickle.dumps(self.folder))) if is_remote(self.folder) else self

    def select(self, rows: npt.NDArray[np.int64]) -> "Manifest":
        """Return a manifest of these samples, ascending; its fingerprint and its shards are those of the whole."""
        columns: dict[str, Any] = {name: getattr(self, name) for name in columns_of(True)}
        taken: dict[str, Any] = {name: None if column is None else column[rows] for name, column in columns.items()}
        return replace(
            self,
            **taken,
            shard_lengths=np.bincount(self.shard_id[rows], minlength=len(self.shards)).astype(np.int64),
            rows=rows if self.rows is None else self.rows[rows],
        )

    def keys(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        """Return the WebDataset keys of these samples, in the order asked for."""
        return self._strings("key", indices)

    def sources(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        """Return the paths that these samples had in the source folder, in the order asked for."""
        return self._strings("source", indices)

    def formats(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        """Return the image formats of these samples ("jpeg", "png", ...), in the order asked for."""
        return self._strings("format", indices)

    def mask_sources(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        """Return the paths that the masks of these samples had in the source folder, in the order asked for."""
        return self._strings("mask_source", indices)

    def _strings(self, column: str, indices: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"sample {wanted.max()} of {len(self)} in split {self.split}")
        wanted = wanted if self.rows is None else self.rows[wanted]
        strings = [""] * len(wanted)
        path = self.folder / MANIFEST_NAME
        with _read_errors(path), open_for_arrow(path) as source, open_parquet(path, source) as file:
            groups = range(file.num_row_groups)
            starts = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in groups)])
            group_of = np.searchsorted(starts, wanted, side="right") - 1
            for group in np.unique(group_of):
                values = file.read_row_group(int(group), columns=[column]).column(column)
                for position in np.flatnonzero(group_of == group):
                    strings[position] = values[int(wanted[position] - starts[group])].as_py()
        return strings


def schema(
    class_names: Sequence[str] | None, masks: MaskCoding | None = None, pixels: PixelCoding | None = None
) -> pa.Schema:
    """Return the manifest's schema, with class names and the codings of masks and pixels in its metadata, if any."""
    metadata = {} if class_names is None else {CLASS_NAMES_KEY: json.dumps(list(class_names)).encode()}
    metadata |= {} if pixels is None else {PIXELS_KEY: pixels.to_metadata()}
    if masks is None:
        return SCHEMA.with_metadata(metadata or None)
    return pa.schema([*SCHEMA, *MASK_FIELDS], metadata | {MASKS_KEY: masks.to_metadata()})


def read_manifest(data: Path, split: str = "train") -> Manifest:
    """Read the manifest of one split and check it against the names and sizes (not the bytes) of its shards.

    `data` is a data set (the folder that `coma shard` wrote) or one of its split folders; `split` is ignored for
    the latter. Raises DataError if there is no such split, if `coma shard` has not finished, or if a row points
    outside its folder or past its shard's end.
    """
    manifest = load_manifest(data, split)
    if is_remote(manifest.folder):
        with ThreadPoolExecutor(_STORE_REQUESTS) as pool:  # each takes a round trip
            sizes = list(pool.map(partial(_shard_bytes, manifest.folder), manifest.shards))
    else:
        sizes = [_shard_bytes(manifest.folder, shard) for shard in manifest.shards]
    past = manifest.least_bytes > np.asarray(sizes, dtype=np.int64)
    if past.any():
        shard = int(np.argmax(past))
        raise DataError(
            f"{manifest.folder / manifest.shards[shard]} is cut short: it has {sizes[shard]} bytes and its "
            "manifest points past them; copy it again, or shard again into a new folder"
        )
    return manifest


def load_manifest(data: Path, split: str = "train") -> Manifest:
    """Read a manifest as `read_manifest` does, without looking at the shards."""
    try:
        folder = _split_folder(folder_at(data), split)
    except OSError as error:
        raise DataError(f"{without_credentials(str(data))}: {error.strerror or error}") from None
    path = folder / MANIFEST_NAME
    with _read_errors(path):
        columns = retrying(path, lambda: load_columns(path))
    summary, arrays = columns.summary, columns.arrays
    return Manifest(
        folder=folder,
        split=folder.name,
        shards=summary.shards,
        shard_lengths=np.array(summary.shard_lengths, np.int64),
        least_bytes=np.array(summary.least_bytes, np.int64),
        **{name: arrays.get(name) for name in columns_of(True)},  # type: ignore[arg-type]
        mask_coding=summary.masks,
        pixels=summary.pixels,
        class_names=summary.class_names,
        fingerprint=columns.fingerprint,
    )


def load_manifests(data: Path) -> list[Manifest]:
    """Read the manifests of all splits of a data set, train first, or that of one split's folder.

    Raises DataError as `read_manifest` does, though the shards are not looked at.
    """
    data = folder_at(data)
    if (data / MANIFEST_NAME).is_file():
        return [load_manifest(data)]
    if not is_remote(data) and not data.is_dir():
        raise _no_data(data)
    return [load_manifest(data, name) for name in split_names(data)]


def read_info(data: Path) -> dict[str, object]:
    """Read a complete data set's `_info.json`. Raises DataError if it is missing or not one of ours."""
    path = folder_at(data) / INFO_NAME
    try:
        info = json.loads(retrying(path, path.read_bytes))
    except (OSError, ValueError) as error:
        absent = isinstance(error, FileNotFoundError) and str(error).endswith(INFO_NAME)  # a store gives no cause
        cause = "no such file" if absent else getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {cause}") from error
    if not isinstance(info, dict) or not isinstance(info.get("splits"), dict):
        raise DataError(f"{path} does not describe a sharded data set")
    return info


def split_names(data: Path) -> list[str]:
    """Return the splits of a complete data set, train first. Raises DataError if there are none."""
    info = read_info(data)
    splits = info["splits"]
    assert isinstance(splits, dict)
    names = [name for name in splits if is_there(folder_at(data) / name / MANIFEST_NAME)]
    if not names:
        raise DataError(f"{data} has no split with a {MANIFEST_NAME}; make one with: coma shard SOURCE")
    return sorted(names, key=lambda name: (name != "train", name))


def chosen_data(data: str | Path | None) -> Path:
    """Return the folder of a data set, or of the only one in the current folder. Raises DataError, UsageError."""
    return find_data(Path()) if data is None else folder_at(data)


def find_data(folder: Path) -> Path:
    """Find the one sharded data set here: `folder` itself or one of its children.

    Raises DataError if there is none or there are several, naming them.
    """
    if _is_data(folder):
        return folder
    children = sorted(child for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []
    data_sets = [child for child in children if _is_data(child)]
    if len(data_sets) == 1:
        return data_sets[0]
    if data_sets:
        names = ", ".join(child.name for child in data_sets[:5]) + (", ..." if len(data_sets) > 5 else "")
        raise DataError(f"{len(data_sets)} sharded data sets in {folder.resolve()}: {names}; name one of them")
    raise DataError(f"no sharded data set in {folder.resolve()}; make one with: coma shard FOLDER_OF_IMAGES")


def _is_data(folder: Path) -> bool:
    try:
        return (folder / INFO_NAME).is_file() and bool(split_names(folder))
    except (DataError, PermissionError):
        return False


def _split_folder(data: Path, split: str) -> Path:
    if is_there(data / MANIFEST_NAME):
        return data.absolute()
    if not is_there(data / INFO_NAME):  # checked first, because a web server need not list its folders
        if not data.is_dir():
            raise _no_data(data)
        if (data / WORK_FOLDER).is_dir():
            raise DataError(f"{data} is not complete: run the same `coma shard` command again to resume it")
        place = without_credentials(str(data))
        if not is_remote(data) and any(data.glob("*.tar")):
            raise DataError(
                f"{place} holds tars without a manifest; make one with: {shell_command('coma', 'index', data)} "
                f"(or, if they are no WebDataset shards: {shell_command('coma', 'shard', data)})"
            )
        words = ("coma", "shard", "SOURCE", place) if is_remote(data) else ("coma", "shard", place)
        raise DataError(f"{place} holds no shards (no {INFO_NAME}); make them with: {shell_command(*words)}")
    names = split_names(data)
    if split not in names:
        raise DataError(f"{data} has no split {split!r}; it has {', '.join(names)}")
    return (data / split).absolute()


def _no_data(data: Path) -> DataError:
    reason = "it is a file" if data.exists() else "no such folder"
    return DataError(f"no sharded data set at {without_credentials(str(data))}: {reason}")


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Turn errors of reading a manifest file into DataErrors."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        place = without_credentials(str(path))
        raise DataError(f"{place} is not a manifest: {str(error).splitlines()[0]}") from error


def _shard_bytes(folder: Path, shard: str) -> int:
    try:
        if is_remote(folder):
            return retrying(folder, (folder / shard).stat).st_size
        return os.stat(f"{folder}/{shard}").st_size  # noqa: PTH116  (making a Path takes five times as long)
    except OSError as error:
        raise DataError(
            f"shard {without_credentials(str(folder / shard))} cannot be read: {error.strerror or error}; "
            "copy it again, or shard again"
        ) from error
