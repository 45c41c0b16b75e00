"""Splits and classes of images from the names of their folders, in a tree on disk or in a tar.

A split's folders (train/, val2017/ ...) may lie at any depth: in an archive's own folder, above the class folders or
below them. The class is the first folder that is left, as in torchvision's ImageFolder, after folders that hold
everything.
"""

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import takewhile

from coma.errors import UsageError
from coma.shards.sources.listing import ListingBuilder, SplitListing, counted_images, printable, train_first
from coma.shards.sources.splits import UNRULED, SplitRules, splits_of

log = logging.getLogger(__name__)

Folders = tuple[str, ...]

FEW = 0.1
"""Share of the images up to which those that lie outside of all others are strays, which are set aside."""

_GENERIC = re.compile(r"data(set)?|im(age|g)s?|jpe?g(s|images)?|photos?|pics?|pictures?|png", re.IGNORECASE)
_MASKS = re.compile(
    r"(annotations?|ground_?truth|gt|labels?|masks?|seg(mentation)?s?|trimaps?|depths?)(_?(class|object|images?|maps?))?"
    r"([_-]?(png|raw|\d+))?",
    re.IGNORECASE,
)
_OUTSIDE_CLASSES = "outside the classes: it lies in no class folder"
WAYS_OUT = "say which folders are which split, as in --splits train=FOLDER,val=FOLDER (train=. takes all others)"
_BLANKS = re.compile(r"[\s\u200b-\u200d\u2060\ufeff]+")


@dataclass
class _Node:
    """A folder: the images that lie directly in it, and its folders."""

    images: int = 0
    below: dict[str, "_Node"] = field(default_factory=dict)


@dataclass(frozen=True)
class _Place:
    """What a folder's path says of the images that lie directly in it."""

    split: str | None
    """None if it says none."""
    folders: Folders
    """The path without the folder that says the split."""
    beside: str | None = None
    """Set if the folder lies beside those of splits: their names."""


def split_by_folders(
    listing: ListingBuilder,
    class_folders: bool = True,
    rules: SplitRules | None = None,
    *,
    only_split: str = "train",
    told: bool = False,
) -> tuple[tuple[SplitListing, ...], tuple[str, ...] | None]:
    """Derive splits and classes from the paths of a listing; return the splits, train first, and the class names.

    Images that lie outside the splits or, if they are few, outside the class folders are refused. Images that were
    refused before may have any name ("../x.jpg") and are not considered: one that fits nowhere goes to the first
    split.

    Args:
        listing: the images.
        class_folders: whether the folders have the classes' names; otherwise no split has labels.
        rules: which folders are which split; None tells it from their names.
        only_split: the split if no folder says one.
        told: whether the user said that these are class folders, so that images outside them are set aside however
            many they are.

    Raises:
        UsageError: the splits or the classes cannot be told; the message says how to name them.
    """
    parents, counts, places = _places(listing, rules, only_split)
    members = _members(listing, parents, places)
    classes = {parent: folders[0] if folders else None for parent, folders in _class_folders(places, counts).items()}
    named: dict[str, list[str | None] | None] = dict.fromkeys(members)
    if class_folders:
        named = {split: _labelled(listing, split, rows, parents, classes, told) for split, rows in members.items()}
    spelt = _spelling(name for of_split in named.values() if of_split is not None for name in of_split)
    names = sorted(set(spelt.values()), key=os.fsencode)
    index = {name: i for i, name in enumerate(names)}
    splits = []
    for split in train_first(members):
        of_split = named[split]
        labels = None if of_split is None else [index[spelt[name]] if name in spelt else 0 for name in of_split]
        splits.append(listing.split(split, members[split], labels))
    return tuple(splits), tuple(map(printable, names)) or None


def splits_by_folders(
    listing: ListingBuilder, rules: SplitRules | None = None, only_split: str = "train"
) -> dict[str, list[int]]:
    """Group the images of a listing by split as `split_by_folders` does, and refuse those that lie in none."""
    parents, _, places = _places(listing, rules, only_split)
    return _members(listing, parents, places)


def _places(
    listing: ListingBuilder, rules: SplitRules | None, only_split: str
) -> tuple[list[Folders], Counter[Folders], dict[Folders, _Place]]:
    """Return the folder of each image, the good images of each folder, and what each folder's path says."""
    parents = [tuple(path.split("/")[:-1]) for path in listing.paths]
    if rules is None:
        _refuse_masks(listing, parents)
    counts = Counter(parent for i, parent in enumerate(parents) if i not in listing.refused)
    if rules is None:
        return parents, counts, _told_by_names(counts, only_split)
    return parents, counts, {parent: _Place(*rules.place(parent), beside=None) for parent in counts}


def _refuse_masks(listing: ListingBuilder, parents: list[Folders]) -> None:
    """Refuse the pictures in folders of masks or annotations that lie beside a folder of images."""
    beside_images = {
        folder[:depth] for folder in set(parents) for depth, name in enumerate(folder) if _is_generic((name,))
    }
    masks = {
        folder
        for folder in set(parents)
        if any(folder[:depth] in beside_images and _MASKS.fullmatch(name) for depth, name in enumerate(folder))
    }
    for i, parent in enumerate(parents):
        if parent in masks:
            listing.refused.setdefault(i, "masks: in a folder of masks or annotations, beside one of images")


def _told_by_names(counts: Counter[Folders], only_split: str) -> dict[Folders, _Place]:
    """Place the folders that hold images by their own names. Raises UsageError if these cannot be told."""
    places = _below_splits(counts)
    said = {place.split for place in places.values() if place.split is not None}
    without = [folder for folder in counts if folder not in places]
    if not said:
        places = {folder: _Place(only_split, folder) for folder in counts}
    elif sum(counts[folder] for folder in without) > FEW * counts.total():
        raise UsageError(
            f"some images lie in folders of the splits {' and '.join(train_first(said))}, and others, such as those in "
            f"{_shown(without[0])}, in none; {WAYS_OUT}"
        )
    else:
        beside = " and ".join(train_first(said))
        places |= {folder: _Place(None, folder, beside) for folder in without}
    return places


def _shown(folder: Folders) -> str:
    return printable("/".join((*folder, ""))[-200:]) or "the source's top"


def _below_splits(counts: Counter[Folders]) -> dict[Folders, _Place]:
    """Place all folders that lie in or beside the folder of a split."""
    tree = _tree(counts)
    places: dict[Folders, _Place] = {}
    levels: list[Folders] = []
    names: dict[str, set[str]] = {}
    waiting: list[tuple[Folders, _Node]] = [((), tree)]
    while waiting:
        path, node = waiting.pop()
        said = splits_of(node.below)
        if not _is_level(node, said):
            waiting += [((*path, name), child) for name, child in node.below.items()]
            continue
        levels.append(path)
        for name, split in said.items():
            names.setdefault(split, set()).add(name)
        beside = " and ".join(map(printable, sorted(said)))
        for folder in _folders_in(path, node):
            its_split = said.get(folder[len(path)]) if len(folder) > len(path) else None
            rest = path if its_split is None else path + folder[len(path) + 1 :]
            places[folder] = _Place(its_split, rest, None if its_split is not None else beside)
    if names:
        where = (
            f"{split} ({', '.join(f'{printable(name)}/' for name in sorted(names[split]))})"
            for split in train_first(names)
        )
        log.info("splits from the folders' names: %s", ", ".join(where))
    archive = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, zip(*levels, strict=False)))
    return {folder: replace(place, folders=place.folders[archive:]) for folder, place in places.items()}


def _tree(counts: Counter[Folders]) -> _Node:
    root = _Node()
    for folder, images in counts.items():
        node = root
        for name in folder:
            node = node.below.setdefault(name, _Node())
        node.images += images
    return root


def _folders_in(path: Folders, node: _Node) -> Iterable[Folders]:
    """Yield the folders at any depth in a node, and itself, that hold images."""
    waiting = [(path, node)]
    while waiting:
        at, here = waiting.pop()
        if here.images:
            yield at
        waiting += [((*at, name), child) for name, child in here.below.items()]


def _is_level(node: _Node, said: dict[str, str]) -> bool:
    """Whether the folders of a node that say a split are splits, not classes (CIFAR-100 has a class "train").

    They are if there is nothing else, if a train folder has a val or test folder beside it, or if they alone have
    folders of classes.
    """
    if not said:
        return False
    if "train" in said.values() and len(set(said.values())) > 1:
        return True
    if len(said) == len(node.below):
        return not node.images
    return {name for name, child in node.below.items() if child.below} == set(said)


def _members(listing: ListingBuilder, parents: list[Folders], places: dict[Folders, _Place]) -> dict[str, list[int]]:
    """Group the images by split, and refuse those that lie in none."""
    members: dict[str, list[int]] = {}
    homeless = []
    for i, parent in enumerate(parents):
        place = places.get(parent)
        if place is not None and place.split is not None:
            members.setdefault(place.split, []).append(i)
            continue
        homeless.append(i)
        if place is not None and i not in listing.refused:
            listing.refused[i] = f"outside the splits: beside {place.beside}" if place.beside else UNRULED
    good = {split: rows for split, rows in members.items() if any(i not in listing.refused for i in rows)}
    first = train_first(good or members or ["train"])[0]
    members.setdefault(first, []).extend(homeless)
    return members


def _class_folders(places: dict[Folders, _Place], counts: Counter[Folders]) -> dict[Folders, Folders]:
    """Return, for each folder of a split, the folders whose first has the name of the class, if there is any.

    Left out are folders that hold nearly everything, down to where there are several, and a split's only folder if it
    is called images or the like.
    """
    left = {folder: place.folders for folder, place in places.items() if place.split is not None}
    labelled = {places[folder].split for folder, folders in left.items() if folders}
    together = {folder: folders for folder, folders in left.items() if places[folder].split in labelled}
    wrappers = _wrappers(together, counts)
    left = {folder: folders[wrappers:] for folder, folders in left.items()}
    for split in {places[folder].split for folder in left}:
        own = [folder for folder in left if places[folder].split == split]
        while len(tops := {left[folder][:1] for folder in own}) == 1 and _is_generic(tops.pop()):
            left |= {folder: left[folder][1:] for folder in own}
        if len({left[folder] for folder in own}) == 1 and _is_generic(left[own[0]][-1:]):
            left |= dict.fromkeys(own, ())  # VOC2012/JPEGImages
    return left


def _wrappers(left: dict[Folders, Folders], counts: Counter[Folders]) -> int:
    """Return how many folders, one in the other, hold nearly all images before there are several side by side."""
    images, deepest = sum(counts[folder] for folder in left), max(map(len, left.values()), default=0)
    for wrappers in range(deepest):
        below = [folder for folder, folders in left.items() if len(folders) > wrappers]
        if sum(counts[folder] for folder in below) < (1 - FEW) * images:
            break
        if len({left[folder][wrappers] for folder in below}) > 1:
            return wrappers
    return 0


def _is_generic(folders: Folders) -> bool:
    return bool(folders) and _GENERIC.fullmatch(folders[0]) is not None


def _labelled(
    listing: ListingBuilder,
    split: str,
    rows: list[int],
    parents: list[Folders],
    classes: dict[Folders, str | None],
    told: bool,
) -> list[str | None] | None:
    """Return the class of each image of a split, or None if it has no labels; refuse strays.

    Raises UsageError if many images lie in class folders and many do not.
    """
    good = [i for i in rows if i not in listing.refused]
    outside = [i for i in good if classes[parents[i]] is None]
    inside = len(good) - len(outside)
    if not inside:
        return None
    if outside and not told and len(outside) > FEW * len(good):
        some = printable(listing.paths[outside[0]])
        if inside <= FEW * len(good):
            log.warning(
                "split %s is taken without labels: %s of its %s images lie in no class folder, such as %s",
                *(split, f"{len(outside):,}", f"{len(good):,}", some),
            )
            return None
        lie = "lies" if len(outside) == 1 else "lie"
        raise UsageError(
            f"{counted_images(len(outside))} of split {split} {lie} in no class folder, such as {some}, and {inside:,} "
            "in one: give --layout flat to take all without labels, or --layout folder to set those outside aside"
        )
    for i in outside:
        listing.refused[i] = _OUTSIDE_CLASSES
    return [classes.get(parents[i]) for i in rows]


def _spelling(names: Iterable[str | None]) -> dict[str | None, str]:
    """Return {name of a folder: name of its class}, one class for names that look the same."""
    spellings: dict[str, set[str]] = {}
    for name in set(names) - {None}:
        assert name is not None
        spellings.setdefault(_BLANKS.sub(" ", unicodedata.normalize("NFC", name)).strip(), set()).add(name)
    spelt: dict[str | None, str] = {}
    for looks, several in spellings.items():
        if len(several) > 1:
            log.warning("one class for the folders that are called %s: their names differ in Unicode alone", looks)
        spelt |= {name: looks if len(several) > 1 else name for name in several}
    return spelt
