"""Layout `webdataset`: tars of WebDataset samples, whose adjacent members key.jpg, key.cls, key.json belong together.

A key is the name up to the first dot of its last part, as in webdataset (tariterators.base_plus_ext).
"""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from coma.shards.manifest import INFO_NAME
from coma.shards.sources.folders import SPLIT_OF_FOLDER
from coma.shards.sources.listing import IMAGE_EXTENSIONS, ListingBuilder, SourceListing, printable, train_first
from coma.shards.sources.tars import unsafe, walk_tars
from coma.shards.tar import Member, TarError, members

log = logging.getLogger(__name__)

NO_IMAGE = "sample without image"
"""Kind of such samples in `SourceListing.ignored`."""

_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")
_FIRST_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(sorted(SPLIT_OF_FOLDER, key=len, reverse=True))})(?![a-z])")
_SHARD_NAME = re.compile(r"-\d{3,}\.tar$", re.ASCII)
_MAX_SIDECAR_BYTES = 1 << 20
_MAX_MEMBERS = 1000  # of one sample
_MAX_LABEL = 2**31 - 1
_PROBED_MEMBERS = 50  # read to detect the layout of a tar


@dataclass(frozen=True, slots=True)
class WdsSample:
    """One sample of a tar."""

    key: str
    members: tuple[tuple[str, Member], ...]
    """(extension, member) of all members in the tar's order; the extension is what follows the key's dot."""
    image: Member | None
    label: int | None
    """Label from .cls, or else "label" in .json."""
    class_name: str | None
    """"class_name" in .json."""
    refused: str | None
    """Why it is set aside unread, or None."""


def is_webdataset(root: Path, tars: list[str]) -> bool:
    """Whether tars hold samples, not image folders, judged by the first members of the first tar and its name."""
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
        not {"cls", "json", "txt"}.isdisjoint(of_key) and any(map(_is_image, of_key)) for of_key in extensions.values()
    ):
        return True
    return bool(extensions) and flat and _SHARD_NAME.search(tars[0]) is not None


def list_webdataset(root: Path, tars: list[str], progress: Callable[[int], None] | None = None) -> SourceListing:
    """List the images of the samples in `tars` (paths below `root`), with their labels.

    The split is the word train, val, test, ... in a tar's name or folder. Raises DataError that names all damaged
    tars.
    """
    listing, ignored = ListingBuilder(progress), Counter[str]()
    rows: dict[str, list[int]] = {}
    labels: list[int | None] = []
    names = ClassNames()
    for tar, mtime_ns, sample in walk_tars(root, tars, samples):
        if sample.image is None:
            ignored[NO_IMAGE] += 1
            continue
        rows.setdefault(split_of_tar(tar), []).append(len(listing))
        if sample.refused is None:
            names.add(sample.label, sample.class_name)
        labels.append(sample.label)
        image = sample.image
        listing.add(f"{tar}/{image.name}", image.size, mtime_ns, tar, image.offset, sample.refused)
    splits = []
    for split in train_first(rows):
        chosen = rows[split]
        good = [labels[row] for row in chosen if row not in listing.refused]
        labelled = is_labelled(split, len(good), sum(label is None for label in good))
        of_split = [labels[row] or 0 for row in chosen] if labelled else None
        splits.append(listing.split(split, chosen, of_split))
    return SourceListing(root, "webdataset", tuple(splits), names.complete(), ignored=ignored)


def samples(descriptor: int) -> Iterator[WdsSample]:
    """Yield the samples of a tar, including those without an image. Raises TarError as `tar.members` does.

    Links and other members without bytes are not part of a sample, nor are those past the first thousand; if such a
    member is an image by name, it is yielded as a refused sample of its own.
    """
    key: str | None = None
    group: list[tuple[str, Member]] = []
    for member in members(descriptor):
        named = split_name(member.name)
        if member.kind == "folder" or named is None:
            continue
        its_key, extension = named
        if its_key != key and member.kind == "file":
            if key is not None:
                yield _sample(descriptor, key, group)
            key, group = its_key, []
        if member.kind == "file" and len(group) < _MAX_MEMBERS:
            group.append((extension, member))
        elif _is_image(extension):
            refused = f"{member.kind}: it has no bytes in the tar"
            if member.kind == "file":
                refused = f"unreadable: its sample has more than {_MAX_MEMBERS:,} members"
            yield WdsSample(its_key, (), member, None, None, refused)
    if key is not None:
        yield _sample(descriptor, key, group)


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into key and extension; return None for members that webdataset ignores."""
    match = _KEY.fullmatch(name)
    return None if match is None or _META.match(name) else (match[1], match[2])


def split_of_tar(tar: str) -> str:
    """Return a tar's split: the last of train, val, validation, test, ... that its path has as a word, else train."""
    words = _SPLIT.findall(tar.lower())
    return SPLIT_OF_FOLDER[words[-1]] if words else "train"


def is_labelled(split: str, images: int, without: int) -> bool:
    """Whether a split is labelled, that is, none of its images is without a label; warn if only some are."""
    if 0 < without < images:
        log.warning(
            "%s of %s images of split %s have no integer label: the split is taken without labels",
            f"{without:,}",
            f"{images:,}",
            split,
        )
    return without == 0 and images > 0


class ClassNames:
    """Collects the names of classes from samples."""

    def __init__(self) -> None:
        self.names: dict[int, str | None] = {}
        """Label → name; None for a class without a name, or with several."""

    def add(self, label: int | None, name: str | None) -> None:
        """Add the label and class name of a sample."""
        if label is not None:
            self.names[label] = name if self.names.get(label, name) == name else None

    def complete(self) -> tuple[str, ...] | None:
        """Return the names if all classes from 0 on have one each, else None."""
        names = [self.names.get(label) for label in range(len(self.names))]
        known = tuple(name for name in names if name is not None)
        return known if known and len(known) == len(self.names) == len(set(known)) else None


def _is_image(extension: str) -> bool:
    return f".{extension.lower()}" in IMAGE_EXTENSIONS


def _sample(descriptor: int, key: str, group: list[tuple[str, Member]]) -> WdsSample:
    by_extension: dict[str, Member] = {}
    refused = None
    for extension, member in group:
        if by_extension.setdefault(extension.lower(), member) is not member:
            refused = f"duplicate: the sample has two members .{printable(extension)[:20].lower()}"
    images = sorted(filter(_is_image, by_extension), key=_preference)
    image = by_extension[images[0]] if images else None
    if image is not None and refused is None:
        refused = unsafe(image.name)
    label = class_name = None
    if image is not None and refused is None:
        about = _about(_sidecar(descriptor, by_extension.get("json")))
        label = _label(_sidecar(descriptor, by_extension.get("cls")), about.get("label"))
        class_name = about.get("class_name")
    return WdsSample(
        key=key,
        members=tuple(group),
        image=image,
        label=label,
        class_name=printable(class_name) if isinstance(class_name, str) else None,
        refused=refused,
    )


def _preference(extension: str) -> tuple[int, str]:
    known = extension in _FIRST_EXTENSIONS
    return _FIRST_EXTENSIONS.index(extension) if known else len(_FIRST_EXTENSIONS), extension


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


def _label(cls: bytes | None, label: object) -> int | None:
    if cls is not None:
        digits = cls.strip()
        return int(digits) if digits.isdigit() and len(digits) <= 10 and int(digits) <= _MAX_LABEL else None
    is_number = isinstance(label, int) and not isinstance(label, bool)
    return label if is_number and 0 <= label <= _MAX_LABEL else None  # type: ignore[operator, return-value]
