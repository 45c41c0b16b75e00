"""Layout `tar`: tars of image folders, listed as if they were unpacked, and read where they lie."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from coma.errors import DataError
from coma.shards.sources.kinds import HEAD_BYTES, extension, is_image, kind, refused_by_name
from coma.shards.sources.listing import ListingBuilder, PassedOver, printable
from coma.shards.sources.splits import split_of
from coma.shards.sources.walk import CLUTTER_FOLDERS
from coma.shards.tar import Member, PackedTarError, TarError, has_ending, members

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TarFile:
    """A member of a tar that is not a folder."""

    path: str
    """Where unpacking would put it; an unsafe name is kept as it is."""
    offset: int
    """First byte in the outermost tar, also if the member is in a tar within it."""
    size: int
    refused: str | None
    """Why an image is set aside unread, or None."""
    kind: str | None = None
    """What it is if it is no image, None for an image."""


def list_tars(
    root: Path, tars: list[str], progress: Callable[[int], None] | None = None, arrays: bool = False
) -> tuple[ListingBuilder, PassedOver]:
    """List the images in `tars` (paths below `root`), and the members that are none.

    An image's path is the member's, below the folder of its tar. If images lie at the top of a tar, or the tars are
    called train, val, ..., a tar counts as a folder of its name. A folder that holds everything, as in tars of one
    folder, is left out. Raises DataError that names all damaged tars.
    """
    listing, passed_over = ListingBuilder(progress), PassedOver()
    for tar, mtime_ns, member in walk_tars(root, tars, partial(files_in, arrays=arrays)):
        if member.kind is None:
            listing.add(member.path, member.size, mtime_ns, tar, member.offset, member.refused)
        else:
            passed_over.add(f"{tar}/{member.path}", member.kind, member.size)
    _set_paths(listing, tars)
    refuse_replaced(listing)
    return listing, passed_over


def walk_tars(root: Path, tars: Iterable[str], walk: Callable[[int], Iterable[T]]) -> Iterator[tuple[str, int, T]]:
    """Open one tar after the other and yield everything that `walk` yields: (tar, modification time in ns, item).

    Raises DataError at the end that names all tars that cannot be read or are damaged.
    """
    problems: list[str] = []
    damaged = False
    for tar in tars:
        path = root / tar
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                mtime_ns = os.fstat(descriptor).st_mtime_ns
                for item in walk(descriptor):
                    yield tar, mtime_ns, item
                if not has_ending(descriptor):
                    log.warning("%s does not end like a tar: it may be cut short", printable(str(path)))
            finally:
                os.close(descriptor)
        except (TarError, OSError) as error:
            damaged = damaged or (isinstance(error, TarError) and not isinstance(error, PackedTarError))
            what = error.strerror if isinstance(error, OSError) else error
            problems.append(f"{printable(str(path))} ({what})")
    if problems:
        raise DataError(
            f"{len(problems)} {'tar' if len(problems) == 1 else 'tars'} cannot be read: {', '.join(problems)}"
            + ("; download or copy what is damaged again" if damaged else "")
        )


def files_in(
    descriptor: int, start: int = 0, stop: int | None = None, folder: str = "", arrays: bool = False
) -> Iterator[TarFile]:
    """Yield the files in a tar and in the tars within it, each of which counts as a folder of its name.

    With `arrays` a .npy is an image. Raises TarError.
    """
    for member in members(descriptor, start, stop):
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if member.kind == "folder" or not parts:
            continue
        name, path = parts[-1], folder + "/".join(parts)
        stem, ending = name.rpartition(".")[0], extension(name)
        refused = refused_by_name(name) or unsafe(member.name)
        if _is_hidden(parts):
            yield TarFile(path, member.offset, member.size, None, "hidden")
        elif ending == ".tar" and member.kind == "file" and not folder:
            if refused is not None:
                yield TarFile(member.name, member.offset, member.size, refused)
                continue
            try:
                inner = "/".join([*parts[:-1], stem, ""])
                yield from files_in(descriptor, member.offset, member.offset + member.size, inner, arrays)
            except TarError as error:
                raise type(error)(f"in {printable(member.name)}: {error}") from None
        elif not is_image(
            name, member.size if member.kind == "file" else 0, partial(_head, descriptor, member), arrays
        ):
            yield TarFile(path, member.offset, member.size, None, kind(name))
        elif refused is not None:
            yield TarFile(folder + member.name, member.offset, member.size, refused)
        else:
            refused = {
                "link": "link: the tar holds another file's name for it and no bytes",
                "special": "special: a device, a pipe or a sparse file",
            }.get(member.kind)
            yield TarFile(path, member.offset, member.size, refused)


def _head(descriptor: int, member: Member) -> bytes:
    """Return the first bytes of a member."""
    return os.pread(descriptor, min(HEAD_BYTES, member.size), member.offset)


def _is_hidden(parts: list[str]) -> bool:
    return any((part[0] == "." and part != "..") or part in CLUTTER_FOLDERS for part in parts)


def unsafe(name: str) -> str | None:
    """Return why a member's name is unsafe, or None."""
    if name.startswith("/"):
        return "unsafe name: absolute"
    if ".." in name.split("/"):
        return "unsafe name: it leads out of its folder"
    return "unsafe name: it holds a zero byte" if "\0" in name else None


def _set_paths(listing: ListingBuilder, tars: list[str]) -> None:
    """Turn the names of members in their tars into paths below the source's root."""
    good = [i for i in range(len(listing)) if i not in listing.refused]
    tops: dict[str, set[str]] = {tar: set() for tar in tars}
    for i in good:
        top, slash, _ = listing.paths[i].partition("/")
        tops[listing.files[i]].add(top if slash else "")
    stems = {tar: os.path.splitext(os.path.basename(tar))[0] for tar in tars}  # noqa: PTH119, PTH122
    by_name = (len(tars) > 1 or any("/" in tar for tar in tars)) and (
        any("" in folders for folders in tops.values())
        or any(split_of(stem) is not None for stem in stems.values())
        or len({listing.paths[i] for i in good}) < len({(listing.files[i], listing.paths[i]) for i in good})
    )
    prefixes = {
        tar: tar[: tar.rfind("/") + 1] + (f"{stem}/" if by_name and tops[tar] != {stem} else "")
        for tar, stem in stems.items()
    }
    listing.paths[:] = [prefixes[tar] + path for tar, path in zip(listing.files, listing.paths, strict=True)]
    wrapper = _wrapper([listing.paths[i] for i in good], stems[tars[0]] if len(tars) == 1 else None)
    if wrapper:
        log.info("all images lie in the folder %s, which is left out of their paths", printable(wrapper[:-1]))
        listing.paths[:] = [path.removeprefix(wrapper) for path in listing.paths]


def _wrapper(paths: list[str], stem: str | None) -> str:
    """Return the folder (with its slash) that holds all images and is neither a split nor a class, or "".

    A folder is a split if it is called train, val, ..., and a class if images lie directly in it, unless its name is
    `stem`, that of the only tar.
    """
    wrapper = ""
    while paths:
        tops = {path.partition("/")[0] if "/" in path else "" for path in paths}
        top = tops.pop()
        if tops or not top or split_of(top) is not None:
            break
        below = [path[len(top) + 1 :] for path in paths]
        if top != stem and not all("/" in path for path in below):
            break
        wrapper += f"{top}/"
        paths = below
    return wrapper


def refuse_replaced(listing: ListingBuilder) -> None:
    """Refuse images that a later member of the same name would replace if the tar were unpacked."""
    if len(set(listing.paths)) == len(listing):
        return
    last: dict[str, int] = {}
    for i, path in enumerate(listing.paths):
        if i in listing.refused:
            continue
        if path in last:
            listing.refused[last[path]] = "duplicate: a later member has the same name and replaces it"
        last[path] = i
