"""Resuming: the state of OUT before a run, the run's lock and record, and the shards that are finished.

While a run is under way OUT/.coma-shard holds its record (everything that the bytes of the shards depend on), its
lock, and a part file for each finished shard.
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from coma.errors import DataError, UsageError
from coma.shards.files import (
    is_remote,
    make_folder,
    open_for_arrow,
    reaching,
    remove_temporaries,
    store_errors_as_oserror,
    write_atomically,
)
from coma.shards.images.pixel_counts import PixelCounts
from coma.shards.locks import take_lock
from coma.shards.manifest import INFO_NAME, WORK_FOLDER, read_info
from coma.shards.sources.parquet.spool import remove_spool
from coma.shards.write.layout import ShardLayout
from coma.shards.write.one_shard import PART_KEY, counts_file
from coma.shards.write.source_times import TIMES_NAME

_RECORD_NAME = "plan.json"
_OURS = re.compile(r"plan\.json|lock(-\d+-of-\d+)?|coma-.*\.parquet")
_LOCK_NAME = "lock"
_PARTS_NAME = "parts"

_FLAGS = {  # field of the record → what the user may have changed
    "seed": "--seed",
    "shard_bytes": "--shard-bytes",
    "resize_px": "--resize",
    "quality": "--quality",
    "val_fraction": "--val-fraction",
    "check": "--check",
    "max_pixels": "--max-pixels",
    "dedupe": "--dedupe",
    "channels": "--channels",
    "dtype": "--dtype",
    "uncompressed": "--uncompressed",
    "tile": "--tile",
    "overlap": "--overlap",
    "empty_below": "--empty-below",
    "tile_format": "--tile-format",
    "index": "an index of",
}


class OutState(Enum):
    """What a run finds in OUT."""

    NEW = "new"
    UNFINISHED = "unfinished"
    COMPLETE = "complete"


def parts_folder(out: Path) -> Path:
    """Return the folder that holds the part files of finished shards until the end of the run."""
    return out / WORK_FOLDER / _PARTS_NAME


def spool_folder(out: Path, part: str | None = None) -> Path:
    """Return the folder that holds the images of parquet rows while a run, or a part of one, is under way."""
    return out / WORK_FOLDER / ("spool" if part is None else f"spool-{_part_suffix(part)}")


def _part_suffix(part: str) -> str:
    return part.replace("/", "-of-")


def inspect_out(out: Path, record: dict[str, Any]) -> OutState:
    """Find out what OUT holds. Raises UsageError if that is anything but a run with the same record."""
    with reaching(out):
        return _inspect(out, record)


def _inspect(out: Path, record: dict[str, Any]) -> OutState:
    if not out.exists() and not out.is_symlink():
        return OutState.NEW
    if not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder that is new or empty")
    if (out / INFO_NAME).is_file():
        with suppress(DataError):
            about = read_info(out).get("coma")
            if isinstance(about, dict) and isinstance(about.get("plan"), dict):
                _require_same(out, "a data set", about["plan"], record)
                return OutState.COMPLETE
    try:
        previous = json.loads((out / WORK_FOLDER / _RECORD_NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        previous = None
    if isinstance(previous, dict):
        _require_same(out, "an unfinished run", previous, record)
        return OutState.UNFINISHED
    other = next(_other_names(out), None)
    if other is not None:
        raise UsageError(f"{out} is not empty (it holds {other}); name a folder that is new or empty")
    return OutState.NEW


def _other_names(out: Path) -> Iterator[str]:
    """Yield names in OUT besides the work folder; in a store, objects that stand for a folder do not count."""
    if not is_remote(out):
        yield from sorted(child.name for child in out.iterdir() if child.name not in (WORK_FOLDER, TIMES_NAME))
        return
    store: Any = out
    for folder, _, names in store.fs.walk(store.path):
        below = folder.removeprefix(store.path).strip("/")
        if below.split("/")[0] != WORK_FOLDER:
            places = (f"{below}/{name}".lstrip("/") for name in sorted(names) if name)
            yield from (place for place in places if place != TIMES_NAME)


def _require_same(out: Path, what: str, previous: dict[str, Any], record: dict[str, Any]) -> None:
    if previous == record:
        return
    changed = [name for name in {**previous, **record} if previous.get(name) != record.get(name)]
    differences = [
        f"{flag} {previous.get(name)}, not {record.get(name)}" for name, flag in _FLAGS.items() if name in changed
    ]
    if previous.get("masks") != record.get("masks"):
        differences.insert(0, "other masks, or other classes of them")
    if "sources" in changed:
        differences.insert(0, f"other images ({previous.get('images')}, not these {record['images']})")
    elif changed == ["sides"]:
        differences.append("images that had other sides, or could not be opened")
    raise UsageError(
        f"{out} is not empty: it holds {what} of {', '.join(differences) or 'another version of coma'}; "
        "name another OUT, or remove it"
    )


@contextmanager
def locked_run(out: Path, record: dict[str, Any], part: str | None = None) -> Iterator[None]:
    """Make OUT, lock it and write the record; for one `part` ("3/16") of a run, share the lock with other parts.

    Temporary files of a killed run are removed, except by a part, because others may be at work. Raises UsageError
    if another run holds the lock. An object store has no locks.
    """
    work = out / WORK_FOLDER
    make_folder(parts_folder(out))
    with ExitStack() as locks:
        if not is_remote(out):
            locks.enter_context(_locked(out, _LOCK_NAME, shared=part is not None))
            if part is not None:
                locks.enter_context(_locked(out, f"{_LOCK_NAME}-{_part_suffix(part)}", shared=False))
            else:
                children = [child for child in out.iterdir() if child.is_dir()]
                for folder in (out, work, parts_folder(out), *children):
                    remove_temporaries(folder)
        write_atomically(work / _RECORD_NAME, json.dumps(record, indent=2) + "\n")
        yield


@contextmanager
def _locked(out: Path, name: str, shared: bool) -> Iterator[None]:
    with (out / WORK_FOLDER / name).open("w") as lock:
        try:
            held = take_lock(lock.fileno(), shared=shared)
        except OSError:
            held = True  # a file system without locks
        if not held:
            raise UsageError(f"another `coma shard` is writing to {out}; let it end, or name another OUT")
        yield


def finished_counts(out: Path, shard: ShardLayout) -> dict[str, int] | None:
    """Return the counts of a finished shard (kept, set_aside, tar_bytes), None if it is not finished."""
    try:
        part = parts_folder(out) / f"{shard.name}.parquet"
        with open_for_arrow(part) as file:
            metadata = pq.read_schema(file).metadata
        counts: dict[str, int] = json.loads(metadata[PART_KEY])
        tar = out / shard.split / f"{shard.name}.tar"
        with store_errors_as_oserror(tar):
            if counts["kept"] and (tar.stat().st_size != counts["tar_bytes"] or not tar.with_suffix(".idx").is_file()):
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return counts


def counted_type(out: Path, shard: ShardLayout) -> str | None:
    """Return the type of the values that a finished shard counted; None if it is not finished."""
    try:
        with open_for_arrow(counts_file(parts_folder(out), shard.name)) as file:
            return PixelCounts.type_of(pq.read_schema(file).metadata)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def clear_work(out: Path) -> None:
    """Remove the work folder of a finished run: the files that are ours, and the folders if they are empty then."""
    work, parts = out / WORK_FOLDER, parts_folder(out)
    if is_remote(out):
        store: Any = work
        if store.exists():
            store.fs.rm([path for path in store.fs.find(store.path) if _is_ours(path)])
        return
    if not work.is_dir():
        return
    for folder in work.glob("spool*"):
        remove_spool(folder)
    for folder in (parts, work):
        remove_temporaries(folder)
        for file in folder.glob("*"):
            if _is_ours(file.name):
                file.unlink()
        with suppress(OSError):
            folder.rmdir()


def _is_ours(path: str) -> bool:
    return bool(_OURS.fullmatch(path.rsplit("/", 1)[-1]))
