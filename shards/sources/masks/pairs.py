"""Pairs of image and mask, told from the names of folders and files.

A mask lies in a folder whose name is a word for masks, beside the folder of its image and with the same folders below
it (images/train/1.jpg and masks/train/1.png, train/images/1.jpg and train/labels/1.png), or beside its image itself
with such a word at the end of its name (1.jpg and 1_mask.png).
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import takewhile

from coma.errors import UsageError
from coma.shards.sources.folder_names import FEW
from coma.shards.sources.listing import ListingBuilder, counted_images, printable

log = logging.getLogger(__name__)

Folders = tuple[str, ...]

NO_MASKS = "none"
"""What `--masks` says to take images alone."""
_WORDS = (
    r"annotations?|ground[_-]?truths?|gt([_-]?(fine|coarse|masks?))?|labels?|masks?|seg(mentation)?s?([_-]?masks?)?|"
    r"trimaps?"
)
_MASK_FOLDER = re.compile(rf"({_WORDS})([_-]?(class|object|images?|maps?|png|raw|\d+))?", re.IGNORECASE)
_IMAGE_WORDS = r"data|im(age|g)s?|jpe?g(s|images)?|photos?|pics?|pictures?|png|leftimg8bit|inputs?|rgb"
_IMAGE_FOLDER = re.compile(_IMAGE_WORDS, re.IGNORECASE)
_MASK_SIDE = re.compile(rf"(?:(?P<before>.+)[_-](?:{_WORDS})|(?:{_WORDS})[_-](?P<after>.+))", re.IGNORECASE)
_IMAGE_SIDE = re.compile(
    rf"(?:(?P<before>.+)[_-](?:{_IMAGE_WORDS})|(?:{_IMAGE_WORDS})[_-](?P<after>.+))", re.IGNORECASE
)
_MASK_NAME = re.compile(
    r"(?:(?P<before>.+?)[_\-. ](?:gt(?:fine|coarse)?[_-])?(?:masks?|seg(?:mentation)?s?|labels?|gt|annotations?|"
    r"trimaps?|(?:label|labeltrain|instance)_?ids|colou?rs?|L)|"
    r"(?:masks?|seg(?:mentation)?|labels?|gt)[_\-. ](?P<after>.+))",
    re.IGNORECASE,
)
_IMAGE_NAME = re.compile(
    r"(?:(?P<before>.+)[_\-. ](?:im(?:age|g)|leftimg8bit|rgb|sat)|im(?:age|g)[_\-. ](?P<after>.+))", re.IGNORECASE
)
_LOSSY_NAME = re.compile(r"\.(jpe?g|jpe|jfif|webp)$", re.IGNORECASE)
ORPHAN = "mask without image: no image goes by its name"
_SEVERAL = "several masks: "
_OTHER = "masks: in a folder of masks, and not among those that are taken"
MISSING = "mask missing: no mask goes by the image's name"


@dataclass(frozen=True)
class MaskPattern:
    """Which pictures are masks, as `--masks` says: a folder, by its name or path, or names of files with a `*`."""

    text: str

    def place(self, folders: Folders, name: str) -> tuple[int, int] | None:
        """Return which folders of a mask's path are the masks' own, as [start, stop); None if it is no mask."""
        parts = tuple(part for part in self.text.split("/") if part not in ("", "."))
        starts = range(len(folders)) if len(parts) == 1 else (0,)
        for start in starts:
            part = folders[start : start + len(parts)]
            if len(part) == len(parts) and all(map(fnmatchcase, part, parts)):
                return start, start + len(parts)
        above = parts[:-1]
        if fnmatchcase(name, parts[-1]) and len(above) <= len(folders) and all(map(fnmatchcase, folders, above)):
            return (0, len(above)) if above else _mask_folder(folders) or (0, 0)
        return None

    def core(self, name: str) -> str | None:
        """Return what stands for the `*` in a name that the pattern fits."""
        before, star, after = self.text.rpartition("/")[2].partition("*")
        if star and "*" not in after and fnmatchcase(name, f"{before}*{after}"):
            return name[len(before) : len(name) - len(after)]
        return None


@dataclass
class _Pictures:
    """All pictures of a source, those that may be masks apart from all others."""

    images: dict[Folders, list[int]] = field(default_factory=dict)
    masks: dict[tuple[Folders, int, int], list[int]] = field(default_factory=dict)
    """(folders, first and last + 1 of those that are the masks' own) → masks."""


def pair_masks(listing: ListingBuilder, pattern: str | None = None) -> ListingBuilder | None:
    """Return a listing of the images, each with its mask; None if no picture is the mask of another.

    Masks without an image, and images with several masks, are refused in it.

    Args:
        listing: images and masks together.
        pattern: which are masks, as `MaskPattern` describes it; None tells it from the names.

    Raises:
        UsageError: many images have several masks.
    """
    told = None if pattern is None else MaskPattern(pattern)
    folders_of = [tuple(path.split("/")[:-1]) for path in listing.paths]
    names = [path.rsplit("/", 1)[-1] for path in listing.paths]
    pictures = _sorted_out(folders_of, names, told)
    pairs = _pairs_of_folders(pictures, names, told) if pictures.masks else {}
    if not pairs and told is None:
        pictures, pairs = _pairs_of_names(folders_of, names)
    all_masks = [row for rows in pictures.masks.values() for row in rows]
    paired = sum(len(images) == 1 for images in pairs.values())
    if not paired or (told is None and paired < len(all_masks) / 2 and not _several(pairs)):
        return None
    return _paired_listing(listing, all_masks, pairs, folders_of, told)


def _sorted_out(folders_of: list[Folders], names: list[str], told: MaskPattern | None) -> _Pictures:
    pictures = _Pictures()
    for row, (folders, name) in enumerate(zip(folders_of, names, strict=True)):
        own = _mask_folder(folders) if told is None else told.place(folders, name)
        if own is None:
            pictures.images.setdefault(folders, []).append(row)
        else:
            pictures.masks.setdefault((folders, *own), []).append(row)
    return pictures


def _mask_folder(folders: Folders) -> tuple[int, int] | None:
    """Return where folders of masks stand in a path, one or more in each other, as [start, stop)."""
    for start, name in enumerate(folders):
        if _is_mask_folder(name):
            return start, start + len(list(takewhile(_is_mask_folder, folders[start:])))
    return None


def _is_mask_folder(name: str) -> bool:
    return _MASK_FOLDER.fullmatch(name) is not None or _MASK_SIDE.fullmatch(name) is not None


def _rest(name: str, whole: re.Pattern[str], side: re.Pattern[str]) -> str | None:
    """Return what a folder's name says besides the word for its contents; None if it has no such word."""
    if whole.fullmatch(name):
        return ""
    match = side.fullmatch(name)
    return None if match is None else match["before"] or match["after"]


def _pairs_of_folders(pictures: _Pictures, names: list[str], told: MaskPattern | None) -> dict[int, list[int]]:
    """Return {mask: images that it may belong to} of masks in folders of their own, or beside their images."""
    without_one: dict[tuple[Folders, Folders], list[Folders]] = {}
    for folders in pictures.images:
        for at in range(len(folders)):
            without_one.setdefault((folders[:at], folders[at + 1 :]), []).append(folders)
    pairs: dict[int, list[int]] = {}
    by_name: dict[Folders, dict[str, list[int]]] = {}
    for (folders, start, stop), masks in pictures.masks.items():
        above, below = folders[:start], folders[stop:]
        rest = _rest(folders[start], _MASK_FOLDER, _MASK_SIDE) if start < stop else ""
        beside = [
            other for other in without_one.get((above, below), []) if stop > start and _fits(other[start], rest, told)
        ]
        if not rest and above + below in pictures.images:
            beside.append(above + below)
        if told is None and stop > start and above + below in beside and not below and len(beside) > 1:
            beside.remove(above + below)  # a picture above images/ and masks/ is another thing
        for mask in masks:
            pairs[mask] = []
            for core in _mask_cores(names[mask], told):
                for other in beside:
                    if other not in by_name:
                        by_name[other] = _by_core(pictures.images[other], names)
                    pairs[mask] += by_name[other].get(core, ())
                if pairs[mask]:
                    break
    return pairs if any(pairs.values()) else {}


def _fits(name: str, rest: str | None, told: MaskPattern | None) -> bool:
    """Whether a folder beside one of masks is that of their images."""
    own = _rest(name, _IMAGE_FOLDER, _IMAGE_SIDE)
    if rest:
        return rest.lower() in (name.lower(), (own or "").lower())
    return own == "" or (told is not None and not _is_mask_folder(name))


def _mask_cores(name: str, told: MaskPattern | None) -> Iterator[str]:
    """Yield what an image may be called to which a mask belongs, best first."""
    stem = name.rpartition(".")[0] or name
    yield stem
    if told is not None and (core := told.core(name)) is not None:
        yield core.rstrip("_-. ")
    match = _MASK_NAME.fullmatch(stem)
    if match is not None:
        yield match["before"] or match["after"]


def _by_core(rows: list[int], names: list[str]) -> dict[str, list[int]]:
    index: dict[str, list[int]] = {}
    for row in rows:
        stem = names[row].rpartition(".")[0] or names[row]
        match = _IMAGE_NAME.fullmatch(stem)
        for core in {stem, stem if match is None else match["before"] or match["after"]}:
            index.setdefault(core, []).append(row)
    return index


def _pairs_of_names(folders_of: list[Folders], names: list[str]) -> tuple[_Pictures, dict[int, list[int]]]:
    """Pair images with masks in the same folder, if nearly all images have one."""
    pictures = _Pictures()
    for row, folders in enumerate(folders_of):
        stem = names[row].rpartition(".")[0] or names[row]
        if _MASK_NAME.fullmatch(stem) and not _LOSSY_NAME.search(names[row]):
            pictures.masks.setdefault((folders, 0, 0), []).append(row)
        else:
            pictures.images.setdefault(folders, []).append(row)
    pairs: dict[int, list[int]] = {}
    for (folders, *_), masks in pictures.masks.items():
        index = _by_core(pictures.images.get(folders, []), names)
        for mask in masks:
            cores = list(_mask_cores(names[mask], None))[1:]
            pairs[mask] = [row for core in cores for row in index.get(core, ())]
    images = sum(map(len, pictures.images.values()))
    with_mask = {image for of_mask in pairs.values() for image in of_mask}
    return pictures, pairs if len(with_mask) >= (1 - FEW) * images else {}


def _several(pairs: dict[int, list[int]]) -> set[int]:
    """Return the images to which several masks may belong, or whose mask may belong to several images."""
    counts = Counter(image for images in pairs.values() for image in images)
    shared = {image for images in pairs.values() if len(images) > 1 for image in images}
    return shared | {image for image, masks in counts.items() if masks > 1}


def _paired_listing(
    listing: ListingBuilder,
    all_masks: list[int],
    pairs: dict[int, list[int]],
    folders_of: list[Folders],
    told: MaskPattern | None,
) -> ListingBuilder:
    several = _several(pairs)
    with_mask = {image for images in pairs.values() for image in images}
    if len(several) > FEW * len(with_mask):
        raise UsageError(_ask(listing, several, pairs))
    masks_of: dict[int, list[int]] = {}
    for mask, images in pairs.items():
        for image in images:
            masks_of.setdefault(image, []).append(mask)
    good = sorted(mask for mask, images in pairs.items() if len(images) == 1 and images[0] not in several)
    is_good = set(good)
    rows = [row for row in range(len(listing)) if row not in is_good]
    paired = listing.take(rows)
    paired.masks = listing.take(good)
    number = {row: at for at, row in enumerate(rows)}
    paired.mask_of = {number[pairs[mask][0]]: at for at, mask in enumerate(good)}
    for image in several:
        shown = " and ".join(printable(listing.paths[mask]) for mask in masks_of[image][:2])
        paired.refused.setdefault(number[image], f"{_SEVERAL}{shown}")
    for mask in set(all_masks) - is_good:
        why = f"{_SEVERAL}more than one goes by the image's name" if pairs.get(mask) else ORPHAN
        paired.refused.setdefault(number[mask], why)
    if told is not None:
        own = {folders_of[mask] for mask in all_masks}
        for row in rows:
            if row not in with_mask and _mask_folder(folders_of[row]) and folders_of[row] not in own:
                paired.refused.setdefault(number[row], _OTHER)
    return paired


def _ask(listing: ListingBuilder, several: set[int], pairs: dict[int, list[int]]) -> str:
    image = min(several)
    masks = sorted(listing.paths[mask] for mask, images in pairs.items() if image in images)
    if len(masks) == 1:
        return (
            f"{printable(masks[0])} goes by the name of several images, such as {printable(listing.paths[image])}: "
            f"give images in one folder names that differ, or take them alone with --masks {NO_MASKS}"
        )
    shown = ", ".join(map(printable, masks[:3]))
    return (
        f"{counted_images(len(several))} {'has' if len(several) == 1 else 'have'} several masks, such as "
        f"{printable(listing.paths[image])}: {shown}; say which with --masks FOLDER, or by their names as in "
        f"--masks '*_labelIds.png' (--masks {NO_MASKS} takes images alone)"
    )
