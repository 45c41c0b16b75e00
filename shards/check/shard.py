"""Check one shard against its manifest, in one pass from its first byte to its last.

A tar that we wrote is held to every byte that matters: members, labels, what the .json says, the ending and
the .idx. A tar that was only indexed is somebody else's: its images alone are looked at.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from coma.shards import tar
from coma.shards.check.walk import Window, index_line, samples, suffix
from coma.shards.files import as_local, reaching
from coma.shards.images.prepare import EXTENSIONS, BadImageError, ImageFacts
from coma.shards.manifest import Manifest

_MAX_STRANGERS = 1000  # that are named, of one shard

Decode = Callable[[bytes], ImageFacts]


@dataclass(frozen=True)
class Problem:
    """Something that differs; `key` is empty when it is the whole shard, `shard` when it is the split."""

    split: str
    shard: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Row:
    """What the manifest says of a sample."""

    key: str
    offset: int
    size: int
    width: int
    height: int
    format: str
    label: int | None
    class_name: str | None
    xxh3_64: int
    source: str


def check_shard(
    manifest: Manifest, shard: int, own: bool, decode: Decode | None, advance: Callable[[int], None]
) -> list[Problem]:
    """Return what differs in shard number `shard`, an `own` one or one that was only indexed.

    `decode` looks at an image, and may raise BadImageError; `advance` is told the bytes of images as they are
    checked.
    """
    path = manifest.folder / manifest.shards[shard]
    audit = _Audit(_rows(manifest, shard), decode, advance)
    check = audit.own if own else audit.foreign
    try:
        with as_local(path) as local:
            descriptor = os.open(local, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not hold us up
            try:
                check(descriptor)
            finally:
                os.close(descriptor)
        if own:
            audit.index(path.with_suffix(".idx"))
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)  # a store's has no strerror
        audit.add("", f"cannot be read: {'no such file' if missing else error.strerror or error}")
    return [Problem(manifest.split, path.name, key, reason) for key, reason in audit.found]


class _Audit:
    """One shard under examination; `found` collects (key, reason)."""

    def __init__(self, rows: list[_Row], decode: Decode | None, advance: Callable[[int], None]) -> None:
        self.rows = rows
        self.decode = decode
        self.advance = advance
        self.found: list[tuple[str, str]] = []
        self.index_lines: list[str] = []
        self.damaged = False  # the walk did not reach the tar's end

    def add(self, key: str, reason: str) -> None:
        self.found.append((key, reason))

    def own(self, descriptor: int) -> None:
        """Check a tar that `coma shard` wrote."""
        window = Window(descriptor)
        rows = {row.key: row for row in self.rows}
        missing = dict(rows)
        end = strangers = 0
        try:
            for key, members in samples(window):
                end = members[-1].offset + members[-1].size + -members[-1].size % tar.BLOCK_BYTES
                self.index_lines.append(index_line(members))
                if (row := missing.pop(key, None)) is not None:
                    self._sample(window, row, members)
                else:
                    strangers += 1
                    if strangers <= _MAX_STRANGERS:
                        self.add(key, "is in the tar twice" if key in rows else "is not in the manifest")
            self._ending(window, end)
        except tar.TarError as error:
            self._damage(error)
        if strangers > _MAX_STRANGERS:
            self.add(
                "", f"{strangers:,} samples are not in the manifest; the first {_MAX_STRANGERS:,} are named"
            )
        self._unreached(window, missing.values())

    def foreign(self, descriptor: int) -> None:
        """Check the images of a tar that was only indexed."""
        window = Window(descriptor)
        missing = {row.offset: row for row in self.rows}
        try:
            for member in tar.members(descriptor):
                row = missing.pop(member.offset, None) if member.kind == "file" else None
                if row is not None:
                    self._image(window, row, member.size)
        except tar.TarError as error:
            self._damage(error)
        self._unreached(window, missing.values())

    def index(self, path: Path) -> None:
        """Check DALI's index against what the walk found."""
        try:
            with reaching(path):
                lines = path.read_bytes().decode("utf-8", "replace").split("\n")
        except FileNotFoundError:
            self.add("", f"{path.name} is missing: DALI reads the tar by it")
            return
        except OSError as error:
            self.add("", f"{path.name} cannot be read: {error.strerror or error}")
            return
        due = [f"v1.2 {len(self.index_lines)}", *self.index_lines, ""]
        if lines != due and not self.damaged:
            common = zip(lines, due, strict=False)
            number = next((i for i, (line, other) in enumerate(common) if line != other), len(due) - 1)
            self.add("", f"{path.name} is not the tar's index: line {number + 1} differs")

    def _sample(self, window: Window, row: _Row, members: list[tar.Member]) -> None:
        extension = EXTENSIONS.get(row.format, row.format)
        due = {extension, "json"} if row.label is None else {extension, "json", "cls"}
        files = {suffix(member): member for member in members if member.kind == "file"}
        complain = partial(self.add, row.key)
        if files.keys() != due or len(members) != len(due):
            for one in sorted(due - files.keys()):
                complain(f"lacks its .{one}")
            for one in sorted({suffix(member) for member in members} - due):
                complain(f"has a member too many: .{one}")
            if len(members) > len({member.name for member in members}):
                complain("has a member twice")
        for each in members:
            if window.read(each.offset + each.size, len(zeros := tar.padding(each.size))) != zeros:
                complain(f"something follows its .{suffix(each)} that is not zero")
        if (image := files.get(extension)) is not None:
            if image.offset == row.offset:
                self._image(window, row, image.size)
            else:
                complain(f"its image lies at byte {image.offset:,} of the tar, not at {row.offset:,}")
        if row.label is not None and (member := files.get("cls")) is not None:
            label = bytes(window.read(member.offset, member.size))
            if label != str(row.label).encode():
                complain(f"its .cls says {label[:20].decode('utf-8', 'replace')}, not {row.label}")
        if (member := files.get("json")) is not None:
            reason = _json_differs(bytes(window.read(member.offset, member.size)), row)
            if reason is not None:
                complain(reason)

    def _image(self, window: Window, row: _Row, size: int) -> None:
        if size != row.size:
            self.add(row.key, f"its image has {size:,} bytes in the tar, not {row.size:,}")
        elif (reason := _image_differs(window.read(row.offset, row.size), row, self.decode)) is not None:
            self.add(row.key, reason)
        self.advance(row.size)

    def _ending(self, window: Window, end: int) -> None:
        """The zeros after the last member at byte `end`."""
        after = window.stop - end
        due = len(tar.ending(end))
        if after < due:
            self.add("", f"cut short: {due - after:,} of the zeros at its end are missing")
        elif after > due or any(window.read(end, due)):
            junk = after - due if after > due else due
            self.add("", f"{junk:,} bytes of something else follow its end")

    def _damage(self, error: tar.TarError) -> None:
        self.damaged = True
        self.add("", str(error))

    def _unreached(self, window: Window, rows: Iterable[_Row]) -> None:
        """Samples that the walk did not meet: is their image whole at least?"""
        whole = []
        for row in rows:
            lost = row.offset + row.size - window.stop
            if lost > 0:
                self.add(row.key, f"the shard ends {lost:,} bytes before the image does")
            elif (reason := _image_differs(window.read(row.offset, row.size), row, self.decode)) is not None:
                self.add(row.key, reason)
            else:
                whole.append(row.key)
            self.advance(row.size)
        if self.damaged and whole:
            self.add("", f"{len(whole):,} samples from {whole[0]} on are whole, but lie behind the damage")
        elif whole:
            for key in whole:
                self.add(key, "its image is whole, but the tar has no such member there")


def _rows(manifest: Manifest, shard: int) -> list[_Row]:
    start = int(manifest.shard_lengths[:shard].sum())
    rows = np.arange(start, start + int(manifest.shard_lengths[shard]))
    of = slice(start, start + len(rows))
    label: list[Any] = [None] * len(rows) if manifest.label is None else manifest.label[of].tolist()
    names = manifest.class_names
    return [
        _Row(*values)
        for values in zip(
            manifest.keys(rows),
            manifest.offset[of].tolist(),
            manifest.size[of].tolist(),
            manifest.width[of].tolist(),
            manifest.height[of].tolist(),
            manifest.formats(rows),
            label,
            [None if names is None or one is None else names[one] for one in label],
            manifest.xxh3_64[of].tolist(),
            manifest.sources(rows),
            strict=True,
        )
    ]


def _image_differs(image: memoryview, row: _Row, decode: Decode | None) -> str | None:
    if xxhash.xxh3_64_intdigest(image) != row.xxh3_64:
        return "its bytes are not what they were (the hash differs)"
    if decode is not None:
        try:
            facts = decode(bytes(image))
        except BadImageError as error:
            return f"does not decode: {error}"
        if (facts.width, facts.height) != (row.width, row.height):
            return f"is {facts.width}x{facts.height} pixels, not {row.width}x{row.height}"
        if facts.format != row.format:
            return f"is {facts.format}, not {row.format}"
    return None


def _json_differs(data: bytes, row: _Row) -> str | None:
    try:
        about = json.loads(data)
    except (ValueError, RecursionError):
        return "its .json is damaged"
    if not isinstance(about, dict):
        return "its .json is damaged"
    expected = {
        "source": row.source,
        "width": row.width,
        "height": row.height,
        "label": row.label,
        "class_name": row.class_name,
        "xxh3_64": f"{row.xxh3_64:016x}",
    }
    for name, value in expected.items():
        if name not in about:
            return f"its .json lacks {name}"
        if about[name] != value:
            return f"its .json says {name} {str(about[name])[:80]!r}, not {str(value)!r}"
    return None
