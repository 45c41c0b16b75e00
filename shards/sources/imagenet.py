"""ImageNet as it is downloaded: the official ILSVRC2012 tars with their devkit, and Kaggle's folders with their CSV.

Both are listed as the tree that people make of them by hand, train/<wnid>/, val/<wnid>/ and test/, so that all
three give the same manifest. A wnid is WordNet's number of a class, such as n01440764.
"""

import csv
import io
import logging
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from coma.errors import DataError
from coma.shards.sources import tree
from coma.shards.sources.model import Listing, Sources, counted, printable
from coma.shards.sources.tars import images_in, refuse_replaced, walked

log = logging.getLogger(__name__)

_TAR = re.compile(r"ILSVRC2012_img_(?:(train|val)|(test)[\w-]*)\.tar", re.ASCII)
_DEVKIT = "ILSVRC2012_devkit_t12"
_META = "data/meta.mat"
_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_MAX_DEVKIT_FILE_BYTES = 64 << 20
_KAGGLE_IMAGES = "Data/CLS-LOC"
_KAGGLE_VAL = "LOC_val_solution.csv"
_KAGGLE_WORDS = "LOC_synset_mapping.txt"
_WNID = re.compile(r"n\d{8}", re.ASCII)


def is_official(source: Path) -> bool:
    """Whether a folder holds the official tars of ImageNet by name, or a file is one of them."""
    return bool(_official_tars(source))


def is_kaggle(folder: Path) -> bool:
    """Whether a folder is what Kaggle's download unpacks to, or the folder ILSVRC in it."""
    return _kaggle_base(folder) is not None


def list_official(source: Path, listed: Callable[[int], None] | None = None) -> Sources:
    """List the images in the official tars, `source` being the folder they lie in or one of them.

    Validation images get their classes from the devkit beside them, packed or unpacked; without it they are
    unlabelled, with a warning. Test images have no labels. Raises DataError if a tar is damaged, or if the devkit is
    or does not fit the images.
    """
    root = source if source.is_dir() else source.parent
    tars = _official_tars(source)
    listing, ignored = Listing(), Counter[str]()
    val: list[int] = []
    for tar, mtime_ns, image in walked(root, tars, lambda descriptor: images_in(descriptor, ignored)):
        split = tars[tar]
        path = image.path if split == "train" or image.refused else image.path.rsplit("/", 1)[-1]
        if split == "val" and not image.refused:
            val.append(len(listing))
        listing.add(f"{split}/{path}", image.size, mtime_ns, tar, image.offset, image.refused)
        if listed is not None and len(listing) % 1000 == 0:
            listed(len(listing))
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
    return _sources(root, "imagenet", listing, words, ignored)


def list_kaggle(
    folder: Path, listed: Callable[[int], None] | None = None, exclude: Path | None = None
) -> Sources:
    """List the images below ILSVRC/Data/CLS-LOC; the folder `exclude` is not looked into.

    Validation images get their classes from LOC_val_solution.csv; without it they are unlabelled, with a warning.
    Raises DataError if it is damaged or lacks an image.
    """
    base = _kaggle_base(folder)
    assert base is not None
    images = f"{base}{_KAGGLE_IMAGES}"
    found, ignored = tree.list_tree(folder / images, exclude, listed)
    has_val = any(path.startswith("val/") for path in found.paths)
    wnid_of = _kaggle_val(folder) if has_val else None
    listing, beside = Listing(), Counter[str]()
    lacking = []
    for path, size, mtime_ns in zip(found.paths, found.sizes, found.mtimes_ns, strict=True):
        file = f"{images}/{path}"
        split, _, name = path.partition("/")
        if split not in ("train", "val", "test"):
            beside[split] += 1
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
        log.warning("left out %d images beside train, val and test: %s", beside.total(), counted(beside))
    words = _kaggle_words(folder)
    return _sources(folder, "kaggle", listing, words, ignored)


def _sources(
    root: Path, layout: str, listing: Listing, words: dict[str, str] | None, ignored: Counter[str]
) -> Sources:
    splits, class_names = tree.arranged(listing)
    class_words = None
    if words is not None and class_names is not None:
        class_words = tuple(words.get(name, name) for name in class_names)
    return Sources(root, layout, splits, class_names, class_words, ignored)


def _official_tars(source: Path) -> dict[str, str]:
    """Return {tar: its split}."""
    try:
        names = [source.name] if source.is_file() else sorted(path.name for path in source.iterdir())
    except OSError:
        return {}
    matches = map(_TAR.fullmatch, names)
    return {match[0]: match[1] or match[2] for match in matches if match is not None}


def _label_val(listing: Listing, rows: list[int], wnids: list[str], root: Path) -> None:
    """Put the validation images, whose classes come in the order of their names, into folders of their classes."""
    if len(wnids) != len(rows):
        raise DataError(
            f"the devkit in {root} has the classes of {len(wnids):,} validation images, the tar has {len(rows):,} "
            "images; download what is not whole again"
        )
    for row, wnid in zip(sorted(rows, key=lambda row: listing.paths[row]), wnids, strict=True):
        listing.paths[row] = f"val/{wnid}/{listing.paths[row].removeprefix('val/')}"


def _devkit(root: Path) -> tuple[list[str] | None, dict[str, str] | None]:
    """Read the wnids of the validation images, in order, and what each wnid is called; None without a devkit."""
    folder, packed = root / _DEVKIT, root / f"{_DEVKIT}.tar.gz"
    if not folder.is_dir() and not packed.is_file():
        return None, None
    try:
        if folder.is_dir():
            meta, truth = (folder / _META).read_bytes(), (folder / _TRUTH).read_bytes()
        else:
            meta, truth = _unpacked(packed)
        synsets = _synsets(meta)
        ids = [int(line) for line in truth.split()]
        if unknown := set(ids) - set(synsets):
            raise ValueError(f"{_TRUTH} has the class {min(unknown)}, {_META} has not")
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        path = folder if folder.is_dir() else packed
        raise DataError(f"the devkit {path} cannot be read ({error}); download it again") from error
    return [synsets[number][0] for number in ids], dict(synsets.values())


def _unpacked(devkit: Path) -> tuple[bytes, bytes]:
    wanted: dict[str, bytes] = {}
    with tarfile.open(devkit, "r|*") as archive:
        for member in archive:
            for name in (_META, _TRUTH):
                if member.name.endswith(f"/{name}") and member.isreg():
                    if member.size > _MAX_DEVKIT_FILE_BYTES:
                        raise ValueError(f"{member.name} of {member.size:,} bytes")
                    file = archive.extractfile(member)
                    wanted[name] = file.read() if file is not None else b""
            if len(wanted) == 2:
                break
    if len(wanted) < 2:
        raise ValueError(f"it lacks {_TRUTH if _META in wanted else _META}")
    return wanted[_META], wanted[_TRUTH]


def _synsets(meta: bytes) -> dict[int, tuple[str, str]]:
    """Read {ILSVRC2012_ID: (wnid, words)} of the classes in meta.mat, which also has the groups of classes."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        synsets = np.atleast_1d(
            loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"]
        )
        classes = {
            int(synset["ILSVRC2012_ID"]): (str(synset["WNID"]), str(synset["words"]))
            for synset in synsets
            if int(synset["num_children"]) == 0
        }
    except Exception as error:  # scipy raises what it happens to trip over
        raise ValueError(f"{_META}: {error}") from error
    for wnid, _ in classes.values():
        if not _WNID.fullmatch(wnid):
            raise ValueError(f"{_META} has the WNID {wnid!r}")
    return classes


def _kaggle_base(folder: Path) -> str | None:
    """Return what comes before Data/CLS-LOC below `folder`."""
    return next((base for base in ("ILSVRC/", "") if (folder / base / _KAGGLE_IMAGES).is_dir()), None)


def _kaggle_file(folder: Path, name: str) -> IO[str] | None:
    """Open a file that lies beside the folder ILSVRC."""
    for place in (folder, folder.parent):
        if (place / name).is_file():
            return (place / name).open(encoding="utf-8", errors="replace", newline="")
    return None


def _kaggle_val(folder: Path) -> dict[str, str] | None:
    """Read {validation image, without extension: wnid}, or None."""
    file = _kaggle_file(folder, _KAGGLE_VAL)
    if file is None:
        log.warning("the validation images are taken without labels: put %s into %s", _KAGGLE_VAL, folder)
        return None
    found = {}
    with file:
        lines = csv.reader(file)
        try:
            for line in lines:
                wnid = line[1].split(" ", 1)[0] if len(line) > 1 else ""
                if _WNID.fullmatch(wnid):
                    found[line[0]] = wnid
                elif line != ["ImageId", "PredictionString"]:
                    raise ValueError(f"{','.join(line)[:80]!r} is not an image and its classes")
        except (ValueError, csv.Error) as error:
            raise DataError(f"{file.name}, line {lines.line_num}: {error}; download it again") from None
    return found


def _kaggle_words(folder: Path) -> dict[str, str] | None:
    file = _kaggle_file(folder, _KAGGLE_WORDS)
    if file is None:
        return None
    with file:
        pairs = [line.strip().split(" ", 1) for line in file]
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
