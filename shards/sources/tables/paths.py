"""Paths that a list names → the files that they mean below its root.

A path that is there as it is written is taken so. Otherwise the ways are tried in which lists differ from disks: links
to the root, spaces around, `file://`, `~/`, percent escapes, backslashes, another case or Unicode normal form.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR
from urllib.parse import unquote

_MAX_PATH = 4096  # characters, the limit of Linux
_ESCAPES = str.maketrans({"\0": r"\x00", "\n": r"\n", "\r": r"\r"})
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
IS_URL = "missing: it is a URL, and nothing is downloaded"
_MISSING = "missing: the list names it, but it is not there"
_OUTSIDE = "outside the source: it does not lie in the folder that the list's paths are in"


@dataclass(frozen=True)
class FoundPath:
    """A path of a list, and the file that it means."""

    path: str
    """Path below the root, or as written if it is refused."""
    size: int = -1
    mtime_ns: int = 0
    refused: str | None = None
    """Why it is set aside unread, or None."""


class PathFinder:
    """Finds the files below a root that a list names, whichever way it spells them."""

    def __init__(self, root: Path) -> None:
        self._bases = tuple(dict.fromkeys((os.path.abspath(root), os.path.realpath(root))))  # noqa: PTH100
        self._real_of: dict[str, str] = {}
        self._names: dict[str, dict[str, list[str]]] = {}
        self.respelled = 0
        """Number of files that are called otherwise on the disk than in the list."""
        self.example = ("", "")
        """One of them: as the list has it, and its path below the root."""

    def find(self, text: str, number: int) -> FoundPath:
        """Return the file that entry `number` of the list means, or why it is refused."""
        if not text.strip():
            return FoundPath(f"(entry {number})", refused="missing: the list has no path there")
        if len(text) > _MAX_PATH:
            return FoundPath(text[:200].translate(_ESCAPES) + "...", refused=f"unsafe name: {len(text)} characters")
        shown = text.translate(_ESCAPES)
        if shown != text:
            return FoundPath(shown, refused="unsafe name: it holds a zero byte or a line break")
        inside = None
        for spelling in _spellings(text):
            inside = self._inside(spelling)
            if inside is not None and (file := self._stat(inside)) is not None:
                return self._note(text, file) if spelling != text else file
        if inside is not None and (path := self._respelled(inside)) and (file := self._stat(path)) is not None:
            return self._note(text, file)
        if _URL.match(text) and not text.lower().startswith("file:"):
            return FoundPath(text, refused=IS_URL)
        written = self._inside(text)
        return FoundPath(text, refused=_OUTSIDE) if written is None else FoundPath(written, refused=_MISSING)

    def _inside(self, text: str) -> str | None:
        """Return a path relative to the root, "" for the root itself, or None if it leads out of the root."""
        for base in self._bases:
            whole = os.path.normpath(os.path.join(base, text))  # noqa: PTH118
            if whole == base or whole.startswith(base.rstrip("/") + "/"):
                return whole[len(base.rstrip("/")) + 1 :]
        folder = os.path.normpath(os.path.join(self._bases[0], text))  # noqa: PTH118
        whole = folder
        while folder != (folder := os.path.dirname(folder)):  # noqa: PTH120
            if folder not in self._real_of:
                self._real_of[folder] = os.path.realpath(folder)
            if self._real_of[folder] == self._bases[-1]:
                return whole[len(folder.rstrip("/")) + 1 :]
        return None

    def _stat(self, path: str) -> FoundPath | None:
        """Return the file at a path below the root, or None if there is none."""
        if not path:
            return FoundPath(".", refused="not an image: a folder")
        try:
            status = os.stat(os.path.join(self._bases[0], path))  # noqa: PTH116, PTH118  (files are many)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            return FoundPath(path)  # the worker will record the reason
        if S_ISDIR(status.st_mode):
            return FoundPath(path, refused="not an image: a folder")
        return FoundPath(path, status.st_size, status.st_mtime_ns)

    def _respelled(self, path: str) -> str | None:
        """Return the one path on the disk that differs from this one in case or normal form only."""
        on_disk = ""
        for part in path.split("/"):
            folder = os.path.join(self._bases[0], on_disk)  # noqa: PTH118
            if folder not in self._names:
                self._names[folder] = _names_by_key(folder)
            names = self._names[folder].get(_key(part), [])
            if part not in names and len(names) != 1:
                return None
            on_disk = os.path.join(on_disk, part if part in names else names[0])  # noqa: PTH118
        return on_disk

    def _note(self, text: str, file: FoundPath) -> FoundPath:
        self.respelled += 1
        self.example = (text, file.path)
        return file


def _spellings(text: str) -> Iterator[str]:
    """Yield the path as it is written, then what each way of writing paths makes of it."""
    yield text
    for read in _WAYS:
        if (spelling := read(text)) != text:
            text = spelling
            yield text


def _without_file_url(text: str) -> str:
    if not text.lower().startswith("file://"):
        return text
    host, _, path = text[len("file://") :].partition("/")
    return f"/{path}" if host in ("", "localhost") else text


_WAYS: tuple[Callable[[str], str], ...] = (
    str.strip,
    lambda text: text.strip("\"'"),
    _without_file_url,
    lambda text: os.path.expanduser(text) if text.startswith("~/") else text,  # noqa: PTH111
    lambda text: unquote(text, errors="surrogateescape"),
    lambda text: text.replace("\\", "/"),
)


def _names_by_key(folder: str) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    try:
        for name in os.listdir(folder):  # noqa: PTH208
            names.setdefault(_key(name), []).append(name)
    except OSError:
        pass
    return names


def _key(name: str) -> str:
    """Return what names have in common that differ in case or normal form only."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
