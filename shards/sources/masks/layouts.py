"""Layouts with masks: pairs in any folders, ADE20K's and Pascal VOC's."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coma.errors import DataError, UsageError
from coma.shards.manifest.mask_coding import MaskCoding
from coma.shards.sources.folder_names import FEW, split_by_folders
from coma.shards.sources.labels import Label, number_labels
from coma.shards.sources.listing import (
    ListingBuilder,
    PassedOver,
    SourceListing,
    SplitListing,
    counted_images,
    printable,
)
from coma.shards.sources.masks.classes import coding_of, unusable
from coma.shards.sources.masks.options import MaskOptions
from coma.shards.sources.masks.pairs import MISSING, NO_MASKS, pair_masks
from coma.shards.sources.splits import SplitRules

log = logging.getLogger(__name__)

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_ADE_INFO = "objectInfo150.txt"
_ADE_FOLDER = "ADEChallengeData2016"
_ADE_SCENES = "sceneCategories.txt"
_VOC_PARTS = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
_VOC_YEARS = tuple(f"VOC{year}" for year in range(2007, 2013))
_VOC_LISTS = {"train": "train", "val": "val", "test": "test", "trainval": "train"}
_UNLISTED = "outside the splits: in no list of ImageSets/Segmentation"


@dataclass(frozen=True)
class Paired:
    """Images with their masks, and what the values of the masks mean."""

    listing: ListingBuilder
    coding: MaskCoding


def paired(
    root: Path,
    listing: ListingBuilder,
    passed_over: PassedOver,
    options: MaskOptions,
    told: bool,
    known: Sequence[str] | None = None,
) -> Paired | None:
    """Pair images with masks; return None if there are no masks, or, with a warning, none that can be read.

    Args:
        root: the source.
        listing: images and masks together.
        passed_over: the files of the source that are no images.
        options: what the command line says of masks.
        told: whether the user said that there are masks, so that it is an error if there are none.
        known: names of the classes in this layout.

    Raises:
        UsageError: masks or classes cannot be told.
    """
    if options.pattern == NO_MASKS:
        return None
    told = told or options.pattern is not None
    images = pair_masks(listing, options.pattern)
    if images is None or images.masks is None:
        if told:
            asked = "--layout masks" if options.pattern is None else f"--masks {options.pattern}"
            example = f", which holds {printable(listing.paths[0])}" if len(listing) else ""
            raise UsageError(
                f"{asked}: no picture in {root}{example} goes by the name of another in a folder of masks; put them "
                "into images/ and masks/ under the same names, or say which are masks, as in --masks '*_labels.png'"
            )
        return None
    coding = coding_of(root, images.masks, passed_over, options, known)
    if (why := unusable(root, images.masks, coding, options)) is not None:
        if told or options.classes is not None:
            raise UsageError(f"{why} (--masks {NO_MASKS} takes images alone)")
        log.warning("%s pictures are not taken as masks: %s", f"{len(images.masks):,}", why)
        return None
    return Paired(images, coding)


def refuse_missing(splits: Sequence[SplitListing], told: bool) -> None:
    """Refuse images without a mask in splits that have masks.

    Raises:
        UsageError: they are many, and the user has not said that there are masks.
    """
    for split in splits:
        if split.masks is None:
            if any(i not in split.refused for i in range(len(split))):
                log.warning("split %s has no masks", split.name)
            continue
        missing = [i for i, path in enumerate(split.masks.paths) if not path and i not in split.refused]
        good = len(split) - len(split.refused)
        if not told and len(missing) > FEW * good:
            raise UsageError(
                f"{len(missing):,} of {counted_images(good)} of split {split.name}, such as "
                f"{printable(split.paths[missing[0]])}, have no mask: give --masks {NO_MASKS} to take all images, "
                "without masks, or --layout masks to set those aside"
            )
        split.refused.update(dict.fromkeys(missing, MISSING))


def is_ade20k(folder: Path) -> bool:
    """Whether a folder holds ADE20K's scene parsing."""
    return any((at / _ADE_INFO).is_file() and (at / "annotations").is_dir() for at in (folder, folder / _ADE_FOLDER))


def list_ade20k(
    root: Path, listing: ListingBuilder, passed_over: PassedOver, options: MaskOptions, rules: SplitRules | None
) -> SourceListing:
    """List ADE20K: 150 classes whose values begin with 1, as 0 is none; the scenes are the images' labels.

    Raises UsageError, and DataError for a list of classes that is none.
    """
    base = root if (root / _ADE_INFO).is_file() else root / _ADE_FOLDER
    if not (base / _ADE_INFO).is_file():
        raise UsageError(f"--layout ade20k: there is no {_ADE_INFO} in {root}")
    ignored = 0 if options.ignored is None and options.classes is None else options.ignored
    pairs = paired(root, listing, passed_over, replace(options, ignored=ignored), True, _ade_classes(base / _ADE_INFO))
    if pairs is None:
        splits, names = split_by_folders(listing, False, rules)
        return SourceListing(root, "ade20k", splits, names, passed_over=passed_over)
    splits, _ = split_by_folders(pairs.listing, False, rules)
    refuse_missing(splits, told=True)
    scenes = _ade_scenes(base / _ADE_SCENES)
    names = None
    if scenes:
        stems = {split.name: [path.rpartition("/")[2].rpartition(".")[0] for path in split.paths] for split in splits}
        values: dict[str, list[Label]] = {name: [scenes.get(stem) for stem in of] for name, of in stems.items()}
        numbered = number_labels(base / _ADE_SCENES, values, set_aside={split.name: split.refused for split in splits})
        splits = tuple(replace(split, labels=_array(numbered.labels[split.name])) for split in splits)
        names = numbered.class_names
    return SourceListing(root, "ade20k", splits, names, passed_over=passed_over, mask_coding=pairs.coding)


def _array(labels: list[int] | None) -> npt.NDArray[np.int32] | None:
    return None if labels is None else np.asarray(labels, np.int32)


def _ade_classes(path: Path) -> list[str]:
    """Read the names in objectInfo150.txt: a line of heads, then columns by tabs, of which the last is the name."""
    rows = [line.split("\t") for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]
    names = [printable(row[-1].split(",")[0].strip()) for row in rows if row[0].strip().isdecimal()]
    if not names or [int(row[0]) for row in rows if row[0].strip().isdecimal()] != list(range(1, len(names) + 1)):
        raise DataError(f"{path} does not list the classes from 1 on, a line each; download it again")
    return names


def _ade_scenes(path: Path) -> dict[str, str]:
    """Read sceneCategories.txt: the name of an image and its scene, a line each; empty if it is not there."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return {}
    return dict(pair for line in lines if len(pair := line.split()) == 2)


def voc_folder(folder: Path) -> Path | None:
    """Return the folder of Pascal VOC's segmentation, which is a folder or the only one in it of these."""
    places = [folder, folder / "VOCdevkit"]
    places += [
        at / year for at in tuple(places) for year in ("VOC2012", "VOC2010", "VOC2011", "VOC2009", "VOC2008", "VOC2007")
    ]
    places = [at for at in places if all((at / part).is_dir() for part in _VOC_PARTS)]
    if len(places) > 1:
        names = " and ".join(at.name for at in places)
        raise UsageError(f"{folder} holds {names}; name one of them, such as {places[0]}")
    return places[0] if places else None


def list_voc(
    root: Path, listing: ListingBuilder, passed_over: PassedOver, options: MaskOptions, rules: SplitRules | None
) -> SourceListing:
    """List Pascal VOC: 21 classes, 255 is none; the splits are those of ImageSets/Segmentation.

    Raises UsageError, and DataError if there are no lists.
    """
    base = voc_folder(root)
    if base is None:
        raise UsageError(f"--layout voc: {root} has no {', '.join(_VOC_PARTS)}")
    if rules is not None:
        raise UsageError(f"--splits: {root} has its own in ImageSets/Segmentation; --layout masks goes by folders")
    options = options if options.pattern is not None else replace(options, pattern="SegmentationClass")
    pairs = paired(root, listing, passed_over, options, True, VOC_CLASSES)
    if pairs is None:  # --masks none
        splits, names = split_by_folders(listing, False)
        return SourceListing(root, "voc", splits, names, passed_over=passed_over)
    images, split_of = pairs.listing, _voc_lists(base)
    members: dict[str, list[int]] = {}
    for row, path in enumerate(images.paths):
        split = split_of.get(path.rpartition("/")[2].rpartition(".")[0])
        if split is None:
            images.refused.setdefault(row, _UNLISTED)
        members.setdefault(split or next(iter(split_of.values())), []).append(row)
    splits = images.splits(members, dict.fromkeys(members))
    refuse_missing(splits, told=True)
    return SourceListing(
        root, "voc", splits, None, passed_over=passed_over, mask_coding=pairs.coding, splits_are_told=True
    )


def _voc_lists(base: Path) -> dict[str, str]:
    """Return {name of an image: split}. Raises DataError if no list names any."""
    split_of: dict[str, str] = {}
    folder = base / "ImageSets/Segmentation"
    for name, split in _VOC_LISTS.items():
        if (folder / f"{name}.txt").is_file():
            for line in (folder / f"{name}.txt").read_text("utf-8", "replace").split("\n"):
                if line.split():
                    split_of.setdefault(line.split()[0], split)
    if not split_of:
        raise DataError(f"{folder} has no train.txt, val.txt or trainval.txt that names images")
    return split_of
