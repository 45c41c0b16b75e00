"""Layouts `imagenet` (the official ILSVRC2012 tars with their devkit) and `kaggle` (Kaggle's folders with their CSV).

Both are listed as the folders that people unpack them to by hand, train/<wnid>/, val/<wnid>/ and test/, so that all
three give the same manifest. A wnid is WordNet's number of a class, such as n01440764.
"""

import csv
import io
import logging
import os
import re
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from coma.errors import DataError
from coma.shards.sources.folder_names import split_by_folders
from coma.shards.sources.folders import list_folder
from coma.shards.sources.kinds import kind
from coma.shards.sources.listing import ListingBuilder, PassedOver, SourceListing, printable
from coma.shards.sources.tars import files_in, refuse_replaced, walk_tars
from coma.shards.sources.walk import walk

log = logging.getLogger(__name__)

_TAR = re.compile(r"ILSVRC2012_img_(?:(train|val)|(test)[\w-]*)\.tar", re.ASCII)
_DEVKIT = "ILSVRC2012_devkit_t12"
_SYNSETS = "data/meta.mat"
_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_MAX_DEVKIT_FILE_BYTES = 64 << 20
_KAGGLE_IMAGES = "Data/CLS-LOC"
_KAGGLE_VAL = "LOC_val_solution.csv"
_KAGGLE_WORDS = "LOC_synset_mapping.txt"
_WNID = re.compile(r"n\d{8}", re.ASCII)


def is_official(source: Path) -> bool:
    """Whether a folder holds official tars of ImageNet, or a file is one of them, judged by name."""
    return bool(_official_tars(source))


def is_kaggle(folder: Path) -> bool:
    """Whether a folder is Kaggle's unpacked download, or the folder ILSVRC within it."""
    return _kaggle_base(folder) is not None


def list_official(
    source: Path, progress: Callable[[int], None] | None = None, exclude: Path | None = None
) -> SourceListing:
    """List the images in the official tars; `source` is their folder or one of them.

    Validation images get their classes from the devkit beside them, packed or unpacked; without it they are
    unlabelled, with a warning. Test images have no labels. Raises DataError if a tar is damaged, or if the devkit is
    damaged or does not fit the images.
    """
    root = source if source.is_dir() else source.parent
    tars = _official_tars(source)
    listing, passed_over = ListingBuilder(progress), PassedOver()
    if source.is_dir():
        for file in walk(root, exclude, passed_over):
            if file.path not in tars and _DEVKIT not in file.path:
                passed_over.add(file.path, kind(file.name), file.size)
    val: list[int] = []
    for tar, mtime_ns, image in walk_tars(root, tars, files_in):
        if image.kind is not None:
            passed_over.add(f"{tar}/{image.path}", image.kind, image.size)
            continue
        split = tars[tar]
        path = image.path if split == "train" or image.refused else image.path.rsplit("/", 1)[-1]
        if split == "val" and not image.refused:
            val.append(len(listing))
        listing.add(f"{split}/{path}", image.size, mtime_ns, tar, image.offset, image.refused)
    refuse_replaced(listing)
    wnids, words = _devkit(root)
    if wnids is not None and val:
        _label_val(listing, val, wnids, root)
    elif val:
        log.warning(
            "the validation images are taken without labels: put %s.tar.gz, which has their classes, into %s",
            _DEVKIT,
            root,
        )
    return _sources(root, "imagenet", listing, words, passed_over)


def list_kaggle(
    folder: Path, progress: Callable[[int], None] | None = None, exclude: Path | None = None
) -> SourceListing:
    """List the images below ILSVRC/Data/CLS-LOC, except for the folder `exclude`.

    Validation images get their classes from LOC_val_solution.csv; without it they are unlabelled, with a warning.
    Raises DataError if it is damaged or lacks an image.
    """
    base = _kaggle_base(folder)
    assert base is not None
    files, passed_over = list_folder(folder, exclude, progress)
    images = f"{base}{_KAGGLE_IMAGES}/"
    has_val = any(path.startswith(f"{images}val/") for path in files.paths)
    wnid_of = _kaggle_val(folder) if has_val else None
    listing = ListingBuilder()
    lacking, beside = [], []
    for file, size, mtime_ns in zip(files.paths, files.sizes, files.mtimes_ns, strict=True):
        path = file.removeprefix(images)
        split, _, name = path.partition("/")
        if not file.startswith(images) or split not in ("train", "val", "test"):
            beside.append(file)
            passed_over.add(file, "image beside train, val and test", size)
            continue
        if split == "val" and wnid_of is not None:
            wnid = wnid_of.pop(os.path.splitext(os.path.basename(name))[0], None)  # noqa: PTH119, PTH122
            if wnid is None:
                lacking.append(name)
            path = f"val/{wnid}/{name.rsplit('/', 1)[-1]}"
        listing.add(path, size, mtime_ns, file)
    if lacking:
        raise DataError(
            f"{_KAGGLE_VAL} in {folder} has no class for {len(lacking):,} validation images, such as "
            f"{printable(lacking[0])}; download it again, or remove it to take them without labels"
        )
    if wnid_of:
        some = next(iter(wnid_of))
        count = f"{len(wnid_of):,}"
        log.warning("%s names %s validation images that are not there, such as %s", _KAGGLE_VAL, count, some)
    if beside:
        log.warning("passed over %d images beside train, val and test, such as %s", len(beside), printable(beside[0]))
    words = _kaggle_words(folder)
    return _sources(folder, "kaggle", listing, words, passed_over)


def _sources(
    root: Path, layout: str, listing: ListingBuilder, words: dict[str, str] | None, passed_over: PassedOver
) -> SourceListing:
    splits, class_names = split_by_folders(listing)
    class_words = None
    if words is not None and class_names is not None:
        class_words = tuple(words.get(name, name) for name in class_names)
    return SourceListing(root, layout, splits, class_names, class_words, passed_over, splits_are_told=True)


def _official_tars(source: Path) -> dict[str, str]:
    """Return {tar: split}."""
    try:
        names = [source.name] if source.is_file() else sorted(path.name for path in source.iterdir())
    except OSError:
        return {}
    matches = map(_TAR.fullmatch, names)
    return {match[0]: match[1] or match[2] for match in matches if match is not None}


def _label_val(listing: ListingBuilder, rows: list[int], wnids: list[str], root: Path) -> None:
    """Move the paths of validation images into class folders; `wnids` are their classes in the order of their names."""
    if len(wnids) != len(rows):
        raise DataError(
            f"the devkit in {root} has the classes of {len(wnids):,} validation images, the tar has {len(rows):,} "
            "images; download what is not whole again"
        )
    for row, wnid in zip(sorted(rows, key=lambda row: listing.paths[row]), wnids, strict=True):
        listing.paths[row] = f"val/{wnid}/{listing.paths[row].removeprefix('val/')}"


def _devkit(root: Path) -> tuple[list[str] | None, dict[str, str] | None]:
    """Read the wnids of the validation images, in order, and the words for each wnid; None without a devkit."""
    folder, packed = root / _DEVKIT, root / f"{_DEVKIT}.tar.gz"
    if not folder.is_dir() and not packed.is_file():
        return None, None
    try:
        if folder.is_dir():
            table, truth = (folder / _SYNSETS).read_bytes(), (folder / _TRUTH).read_bytes()
        else:
            table, truth = _unpack_devkit(packed)
        synsets = _parse_synsets(table)
        ids = [int(line) for line in truth.split()]
        if unknown := set(ids) - set(synsets):
            raise ValueError(f"{_TRUTH} has the class {min(unknown)}, {_SYNSETS} has not")
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        path = folder if folder.is_dir() else packed
        raise DataError(f"the devkit {path} cannot be read ({error}); download it again") from error
    return [synsets[number][0] for number in ids], dict(synsets.values())


def _unpack_devkit(devkit: Path) -> tuple[bytes, bytes]:
    """Return the table of synsets and the ground truth from the packed devkit."""
    wanted: dict[str, bytes] = {}
    with tarfile.open(devkit, "r|*") as archive:
        for member in archive:
            for name in (_SYNSETS, _TRUTH):
                if member.name.endswith(f"/{name}") and member.isreg():
                    if member.size > _MAX_DEVKIT_FILE_BYTES:
                        raise ValueError(f"{member.name} of {member.size:,} bytes")
                    file = archive.extractfile(member)
                    wanted[name] = file.read() if file is not None else b""
            if len(wanted) == 2:
                break
    if len(wanted) < 2:
        raise ValueError(f"it lacks {_TRUTH if _SYNSETS in wanted else _SYNSETS}")
    return wanted[_SYNSETS], wanted[_TRUTH]


def _parse_synsets(table: bytes) -> dict[int, tuple[str, str]]:
    """Return {ILSVRC2012_ID: (wnid, words)} of the classes in meta.mat, which has groups of classes as well."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        contents = loadmat(io.BytesIO(table), squeeze_me=True, variable_names=["synsets"])
        synsets = np.atleast_1d(contents["synsets"])
        classes = {
            int(synset["ILSVRC2012_ID"]): (str(synset["WNID"]), str(synset["words"]))
            for synset in synsets
            if int(synset["num_children"]) == 0
        }
    except Exception as error:  # scipy raises many kinds of errors over a damaged file
        raise ValueError(f"{_SYNSETS}: {error}") from error
    for wnid, _ in classes.values():
        if not _WNID.fullmatch(wnid):
            raise ValueError(f"{_SYNSETS} has the WNID {wnid!r}")
    return classes


def _kaggle_base(folder: Path) -> str | None:
    """Return the path below `folder` that Data/CLS-LOC lies in ("ILSVRC/" or ""), None if there is no such folder."""
    return next((base for base in ("ILSVRC/", "") if (folder / base / _KAGGLE_IMAGES).is_dir()), None)


def _kaggle_file(folder: Path, name: str) -> IO[str] | None:
    """Open a file beside the folder ILSVRC."""
    for place in (folder, folder.parent):
        if (place / name).is_file():
            return (place / name).open(encoding="utf-8", errors="replace", newline="")
    return None


def _kaggle_val(folder: Path) -> dict[str, str] | None:
    """Read {validation image without extension: wnid}; warn and return None if the file is missing."""
    file = _kaggle_file(folder, _KAGGLE_VAL)
    if file is None:
        log.warning("the validation images are taken without labels: put %s into %s", _KAGGLE_VAL, folder)
        return None
    wnid_of = {}
    with file:
        lines = csv.reader(file)
        try:
            for line in lines:
                wnid = line[1].split(" ", 1)[0] if len(line) > 1 else ""
                if _WNID.fullmatch(wnid):
                    wnid_of[line[0]] = wnid
                elif line != ["ImageId", "PredictionString"]:
                    raise ValueError(f"{','.join(line)[:80]!r} is not an image and its classes")
        except (ValueError, csv.Error) as error:
            raise DataError(f"{file.name}, line {lines.line_num}: {error}; download it again") from None
    return wnid_of


def _kaggle_words(folder: Path) -> dict[str, str] | None:
    file = _kaggle_file(folder, _KAGGLE_WORDS)
    if file is None:
        return None
    with file:
        pairs = [line.strip().split(" ", 1) for line in file]
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
