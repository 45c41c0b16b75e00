"""Layout `webdataset`: tars of WebDataset samples, whose adjacent members key.jpg, key.cls, key.json belong together.

A key is the name up to the first dot of its last part, as in webdataset (tariterators.base_plus_ext).
"""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from coma.shards.manifest import INFO_NAME
from coma.shards.sources.kinds import (
    HEAD_BYTES,
    LEAST_BYTES,
    is_image_head,
    is_image_name,
    is_raw_name,
    kind,
    may_hide_an_image,
    refused_by_name,
)
from coma.shards.sources.labels import number_labels
from coma.shards.sources.listing import ListingBuilder, PassedOver, SourceListing, printable
from coma.shards.sources.splits import UNRULED, SplitRules, last_split_in, split_of
from coma.shards.sources.tars import unsafe, walk_tars
from coma.shards.tar import Member, TarError, members
from coma.shards.tiles.grid import key_ending, place_in

log = logging.getLogger(__name__)

NO_IMAGE = "sample without image"
"""Kind of the members of such samples in `SourceListing.passed_over`."""

OTHER_PICTURE = "other picture of its sample"
"""Kind of the images of a sample beside the one that is taken."""

_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")
_FIRST_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_FIRST_ARRAYS = ("npy", "tif", "tiff", "png")
_NO_PICTURE = re.compile(r"(?:.*\.)?(?:seg|segmentation|masks?|depth|labels?|annotations?|alpha)\.[^.]+", re.IGNORECASE)
_LABELS = ("cls", "label", "target")  # extensions of members, and names in .json
_LABEL_NAMES = ("label", "cls", "class_id", "category_id", "target", "class")
_CLASS_NAMES = ("class_name", "label_name", "category_name", "category", "classname")
_MAX_NAME = 200  # characters of a label that is a word
_SHARD_NAME = re.compile(r"-\d{3,}\.tar$", re.ASCII)
_MAX_SIDECAR_BYTES = 1 << 20
_MAX_MEMBERS = 1000  # of one sample
_MAX_LABEL = 2**31 - 1
_MAX_DIGITS = 16
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)
_PROBED_MEMBERS = 50  # read to detect the layout of a tar


@dataclass(frozen=True, slots=True)
class WdsSample:
    """One sample of a tar."""

    key: str
    members: tuple[tuple[str, Member], ...]
    """(extension, member) of all members in the tar's order; the extension is what follows the key's dot."""
    image: Member | None
    label: int | str | None
    """Label from .cls, or else "label" in .json; a word is the class's name."""
    class_name: str | None
    """"class_name" in .json."""
    refused: str | None
    """Why it is set aside unread, or None."""
    unusable: str | None = None
    """What stands where a label should, if it is none."""
    tile: str | None = None
    """Name of the tile, with the image that it was cut from, if `coma shard --tile` made it; from .json."""
    passed_over: tuple[tuple[Member, str], ...] = ()
    """Members that are no part of what is read, with what they are: other pictures; all if there is no image."""


def is_webdataset(root: Path, tars: list[str], arrays: bool = False) -> bool:
    """Whether tars hold samples, not image folders, judged by the first members of the first tar and its name.

    With `arrays` a .npy is an image.
    """
    is_image = partial(_is_image, arrays=arrays)
    if not tars:
        return False
    path = root / tars[0]
    if (path.parent / INFO_NAME).is_file() or (root / INFO_NAME).is_file():
        return True
    extensions: dict[str, set[str]] = {}
    flat = True
    try:
        with path.open("rb") as file:
            for member in islice(members(file.fileno()), _PROBED_MEMBERS):
                if member.kind == "file" and (named := split_name(member.name)) is not None:
                    extensions.setdefault(named[0], set()).add(named[1])
                    flat = flat and "/" not in named[0].removeprefix("./")
    except (TarError, OSError):
        pass  # listing the tar will raise it
    if any(
        not {"cls", "json", "txt"}.isdisjoint(of_key) and any(map(is_image, of_key)) for of_key in extensions.values()
    ):
        return True
    return bool(extensions) and flat and _SHARD_NAME.search(tars[0]) is not None


def list_webdataset(
    root: Path,
    tars: list[str],
    progress: Callable[[int], None] | None = None,
    rules: SplitRules | None = None,
    only_split: str = "train",
    arrays: bool = False,
) -> SourceListing:
    """List the images of the samples in `tars` (paths below `root`), with their labels; with `arrays`, .npy as well.

    The split is what `rules` say, or the word train, val, test, ... in a tar's path or a key's folders, else
    `only_split`. Raises DataError that names all damaged tars.
    """
    listing, passed_over = ListingBuilder(progress), PassedOver()
    rows: dict[str, list[int]] = {}
    labels: list[int | str | None] = []
    names = ClassNames()
    unusable: list[str] = []
    for tar, mtime_ns, sample in walk_tars(root, tars, partial(samples, arrays=arrays)):
        for member, what in sample.passed_over:
            passed_over.add(f"{tar}/{member.name}", what, member.size)
        if sample.image is None:
            continue
        image, refused = sample.image, sample.refused
        if rules is None:
            split: str | None = split_of_sample(tar, sample.key) or only_split
        else:
            split, _ = rules.place((*tar.removesuffix(".tar").split("/"), *sample.key.split("/")[:-1]))
            refused = refused or (UNRULED if split is None else None)
        rows.setdefault(split or "train", []).append(len(listing))
        if refused is None:
            names.add(sample.label, sample.class_name)
        labels.append(sample.label)
        unusable += [f"{sample.unusable!r} of {tar}/{image.name}"] if sample.unusable is not None else []
        listing.add(source_of(tar, sample), image.size, mtime_ns, tar, image.offset, refused)
    if unusable:
        log.warning(
            "%d labels are not used, such as %s: a label is a word or a whole number from 0 to %d",
            *(len(unusable), printable(unusable[0]), _MAX_LABEL),
        )
    good = {split: [row for row in of_split if row not in listing.refused] for split, of_split in rows.items()}
    values = {split: [labels[row] for row in of_split] for split, of_split in good.items()}
    numbered = number_labels(printable(str(root)), values, names.complete())
    of_splits: dict[str, list[int] | None] = {}
    for split, of_split in rows.items():
        numbers = numbered.labels[split]
        number_of = dict(zip(good[split], numbers or (), strict=bool(numbers)))
        of_splits[split] = [number_of.get(row, 0) for row in of_split] if numbers else None
    splits = listing.splits(rows, of_splits)
    return SourceListing(root, "webdataset", splits, numbered.class_names, passed_over=passed_over)


def samples(descriptor: int, arrays: bool = False) -> Iterator[WdsSample]:
    """Yield the samples of a tar, including those without an image. Raises TarError as `tar.members` does.

    Links and other members without bytes are not part of a sample, nor are those past the first thousand. Such a
    member is yielded as a sample of its own: a refused one if it is an image by name, else one without an image.
    With `arrays` a .npy is an image, too.
    """
    key: str | None = None
    group: list[tuple[str, Member]] = []
    for member in members(descriptor):
        named = split_name(member.name)
        if member.kind == "folder":
            continue
        if named is None:
            yield _no_sample(member, kind(member.name.rsplit("/", 1)[-1]))
            continue
        its_key, extension = named
        if its_key != key and member.kind == "file":
            if key is not None:
                yield from _samples(descriptor, key, group, arrays)
            key, group = its_key, []
        if member.kind == "file" and len(group) < _MAX_MEMBERS:
            group.append((extension, member))
        elif _is_image(extension, arrays):
            refused = f"{member.kind}: it has no bytes in the tar"
            if member.kind == "file":
                refused = f"unreadable: its sample has more than {_MAX_MEMBERS:,} members"
            yield WdsSample(its_key, (), member, None, None, refused)
        else:
            yield _no_sample(member, f".{extension}" if member.kind == "file" else member.kind)
    if key is not None:
        yield from _samples(descriptor, key, group, arrays)


def source_of(tar: str, sample: WdsSample) -> str:
    """Return the name of a sample's image: the member's, below its tar; a tile's own, below the folder of its tar.

    So tiles of one image, which lie in many tars, have names that say so.
    """
    assert sample.image is not None
    if sample.tile is not None and sample.refused is None:
        return tar[: tar.rfind("/") + 1] + sample.tile
    return f"{tar}/{sample.image.name}"


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into key and extension; return None for members that webdataset ignores."""
    match = _KEY.fullmatch(name)
    return None if match is None or _META.match(name) else (match[1], match[2])


def split_of_sample(tar: str, key: str = "") -> str | None:
    """Return the split that a tar's path has as a word, the last if it has several, or a folder of the key says."""
    said = last_split_in(tar)
    return said or next((split for part in key.split("/")[:-1] if (split := split_of(part)) is not None), None)


def is_labelled(split: str, images: int, without: int) -> bool:
    """Whether a split is labelled, that is, none of its images is without a label; warn if only some are."""
    if 0 < without < images:
        log.warning(
            "split %s is taken without labels: %s of its %s images have none", split, f"{without:,}", f"{images:,}"
        )
    return without == 0 and images > 0


class ClassNames:
    """Collects the names of classes from samples."""

    def __init__(self) -> None:
        self.names: dict[int, str | None] = {}
        """Label → name; None for a class without a name, or with several."""

    def add(self, label: int | str | None, name: str | None) -> None:
        """Add the label and class name of a sample; a label that is a word is its own name."""
        if isinstance(label, int):
            self.names[label] = name if self.names.get(label, name) == name else None

    def complete(self) -> tuple[str, ...] | None:
        """Return the names if all classes from 0 on have one each, else None."""
        names = [self.names.get(label) for label in range(len(self.names))]
        known = tuple(name for name in names if name is not None)
        return known if known and len(known) == len(self.names) == len(set(known)) else None


def _is_image(extension: str, arrays: bool) -> bool:
    return is_image_name(f"x.{extension}", arrays)


def _samples(descriptor: int, key: str, group: list[tuple[str, Member]], arrays: bool) -> Iterator[WdsSample]:
    """Yield the sample that is made of adjacent members, and its other images if they may be samples as well."""
    by_extension: dict[str, Member] = {}
    refused = None
    for extension, member in group:
        if by_extension.setdefault(extension.lower(), member) is not member:
            refused = f"duplicate: the sample has two members .{printable(extension)[:20].lower()}"
    images = _images(descriptor, by_extension, arrays)
    image = by_extension[images[0]] if images else None
    if image is None:
        beside = tuple((member, NO_IMAGE) for _, member in group)
        yield WdsSample(key, tuple(group), None, None, None, None, passed_over=beside)
        return
    alike = [by_extension[extension] for extension in images[1:] if "." in images[0]]
    pictures = [member for extension, member in group if _is_image(extension, arrays)]
    others = [member for member in pictures if member not in (image, *alike)]
    if refused is None:
        refused = refused_by_name(image.name) or unsafe(image.name)
    about = _about(_sidecar(descriptor, by_extension.get("json"))) if refused is None else {}
    label, class_name, unusable = (None, None, None) if refused else _read_label(descriptor, by_extension, about)
    yield WdsSample(
        key=key,
        members=tuple(group),
        image=image,
        label=label,
        class_name=class_name,
        refused=refused,
        unusable=unusable,
        tile=_tile_name(key, about),
        passed_over=tuple((member, OTHER_PICTURE) for member in others),
    )
    for member in alike:
        why = f"several images: the sample {printable(key)} has another (a key ends at the name's first dot)"
        yield WdsSample(key, (), member, None, None, why)


def _tile_name(key: str, about: dict[str, Any]) -> str | None:
    """Return the name of a tile that `coma shard --tile` cut; None of other samples."""
    source = about.get("source")
    if not isinstance(source, str) or (place := place_in(source)) is None:
        return None
    return printable(source) if key.endswith(key_ending(*place)) else None


def _read_label(
    descriptor: int, by_extension: dict[str, Member], about: dict[str, Any]
) -> tuple[int | str | None, str | None, str | None]:
    """Return the label of a sample, the name of its class, and what stands in the label's place if it is none."""
    sidecar = next((by_extension[extension] for extension in _LABELS if extension in by_extension), None)
    text = _sidecar(descriptor, sidecar)
    told = [about[name] for name in _LABEL_NAMES if about.get(name) is not None]
    value = text.decode("utf-8", "replace") if text is not None else told[0] if told else None
    label = _label(value)
    class_name = next((printable(about[name]) for name in _CLASS_NAMES if isinstance(about.get(name), str)), None)
    return label, class_name, printable(str(value)[:40]) if label is None and value not in (None, "", -1) else None


def _no_sample(member: Member, what: str) -> WdsSample:
    return WdsSample("", (), None, None, None, None, passed_over=((member, printable(what)),))


def _images(descriptor: int, by_extension: dict[str, Member], arrays: bool) -> list[str]:
    """Return the extensions of the images of a sample, best first.

    They are image extensions; if there is none, what ends in one ("v2.jpg") and is no mask; else what has an image's
    first bytes; else a camera's raw file.
    """
    is_image = partial(_is_image, arrays=arrays)
    images = [extension for extension in by_extension if is_image(extension) and "." not in extension]
    if not images:
        dotted = filter(is_image, by_extension)
        images = [extension for extension in dotted if _NO_PICTURE.fullmatch(extension) is None]
    if not images and not any(map(is_image, by_extension)):
        for extension, member in by_extension.items():
            if member.size >= LEAST_BYTES and may_hide_an_image(f"x.{extension}"):
                head = os.pread(descriptor, min(HEAD_BYTES, member.size), member.offset)
                images += [extension] if is_image_head(head, arrays) else []
        images = images[:1] or [extension for extension in by_extension if is_raw_name(f"x.{extension}")][:1]
    first = _FIRST_ARRAYS if arrays else _FIRST_EXTENSIONS
    return sorted(images, key=lambda name: (first.index(name) if name in first else len(first), name))


def _sidecar(descriptor: int, member: Member | None) -> bytes | None:
    if member is None or member.size > _MAX_SIDECAR_BYTES:
        return None
    return os.pread(descriptor, member.size, member.offset)


def _about(data: bytes | None) -> dict[str, Any]:
    try:
        about = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def _label(value: object) -> int | str | None:
    """Return a label: a whole number from 0 on, also one that is written as text, or a word; None if it is none."""
    if isinstance(value, str):
        text = value.strip()
        if not text or len(text) > _MAX_NAME:
            return None
        if _NUMBER.fullmatch(text) is None:
            return printable(text)
        value = float(text) if len(text) < _MAX_DIGITS else -1
    if isinstance(value, int | float) and 0 <= value <= _MAX_LABEL and value == int(value):
        return int(value)
    return None
