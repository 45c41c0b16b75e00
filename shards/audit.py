"""Check one shard against its manifest, in one pass from its first byte to its last.

A tar that we wrote is held to every byte that matters: members, labels, what the .json says, the ending and
the .idx. A tar that was only indexed is somebody else's: its images alone are looked at.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from coma.shards import tar
from coma.shards.files import as_local, reaching
from coma.shards.images import EXTENSIONS, BadImageError, check_image
from coma.shards.manifest import Manifest

_READ_BYTES = 1 << 20
_OWN_PREFIX = "coma-"
_MAX_MEMBERS = 64  # of one key: more are no sample, and are not held together
_MAX_STRANGERS = 1000  # that are named, of one shard


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
    manifest: Manifest, shard: int, decode: bool, advance: Callable[[int], None]
) -> list[Problem]:
    """Return what differs in shard number `shard`; `advance` is told the bytes of images as they are checked."""
    name = manifest.shards[shard]
    path = manifest.folder / name
    audit = _Audit(_rows(manifest, shard), decode, advance)
    check = audit.own if name.startswith(_OWN_PREFIX) else audit.foreign
    try:
        with as_local(path) as local:
            descriptor = os.open(local, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not hold us up
            try:
                check(descriptor)
            finally:
                os.close(descriptor)
        if name.startswith(_OWN_PREFIX):
            audit.index(path.with_suffix(".idx"))
    except OSError as error:
        audit.add("", f"cannot be read: {error.strerror or error}")
    return [Problem(manifest.split, name, key, reason) for key, reason in audit.found]


class _Audit:
    """One shard under examination; `found` collects (key, reason)."""

    def __init__(self, rows: list[_Row], decode: bool, advance: Callable[[int], None]) -> None:
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
        window = _Window(descriptor)
        rows = {row.key: row for row in self.rows}
        missing = dict(rows)
        end = strangers = 0
        try:
            for key, members in _samples(window):
                end = members[-1].offset + members[-1].size + -members[-1].size % tar.BLOCK_BYTES
                self.index_lines.append(_index_line(members))
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
        window = _Window(descriptor)
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

    def _sample(self, window: "_Window", row: _Row, members: list[tar.Member]) -> None:
        extension = EXTENSIONS.get(row.format, row.format)
        due = {extension, "json"} if row.label is None else {extension, "json", "cls"}
        files = {_suffix(member): member for member in members if member.kind == "file"}
        complain = partial(self.add, row.key)
        if files.keys() != due or len(members) != len(due):
            for suffix in sorted(due - files.keys()):
                complain(f"lacks its .{suffix}")
            for suffix in sorted({_suffix(member) for member in members} - due):
                complain(f"has a member too many: .{suffix}")
            if len(members) > len({member.name for member in members}):
                complain("has a member twice")
        for each in members:
            if window.read(each.offset + each.size, len(zeros := tar.padding(each.size))) != zeros:
                complain(f"something follows its .{_suffix(each)} that is not zero")
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

    def _image(self, window: "_Window", row: _Row, size: int) -> None:
        if size != row.size:
            self.add(row.key, f"its image has {size:,} bytes in the tar, not {row.size:,}")
        elif (reason := _image_differs(window.read(row.offset, row.size), row, self.decode)) is not None:
            self.add(row.key, reason)
        self.advance(row.size)

    def _ending(self, window: "_Window", end: int) -> None:
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

    def _unreached(self, window: "_Window", rows: Iterable[_Row]) -> None:
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


class _Window:
    """A file read forwards in large pieces; what it gives is good until the next read."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.stop = os.fstat(descriptor).st_size
        self._piece = memoryview(bytearray(_READ_BYTES))
        self._start = self._end = 0  # bytes of the file that the piece holds

    def read(self, offset: int, size: int) -> memoryview:
        """Bytes [offset, offset + size), fewer where the file ends."""
        if offset < self._start or offset + size > self._end:
            self._fill(offset, size)
        return self._piece[offset - self._start : min(offset + size, self._end) - self._start]

    def _fill(self, offset: int, size: int) -> None:
        size = min(size, max(0, self.stop - offset))  # a damaged manifest claims anything
        if size > len(self._piece):
            self._piece = memoryview(bytearray(size))
        self._start = self._end = offset
        while True:
            got = os.preadv(self.descriptor, [self._piece[self._end - offset :]], self._end)
            self._end += got
            if not got or self._end >= offset + size:
                break


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


def _samples(window: _Window) -> Iterator[tuple[str, list[tar.Member]]]:
    """The members of our tar by key. Raises TarError as `tar.members` does, after what stands before it."""
    key, group = "", list[tar.Member]()
    damage = None
    walk = _members(window)
    while True:
        try:
            member = next(walk, None)
        except tar.TarError as error:
            member, damage = None, error
        its_key = "" if member is None else member.name.partition(".")[0]
        if group and (member is None or its_key != key or len(group) == _MAX_MEMBERS):
            yield key, group
            group = []
        if damage is not None:
            raise damage
        if member is None:
            return
        key = its_key
        group.append(member)


def _members(window: _Window) -> Iterator[tar.Member]:
    """Walk our tar: a header is what we would have written, or `tar.members` says what it is."""
    at = 0
    while any(block := bytes(window.read(at, tar.BLOCK_BYTES))):
        name = block[:100].rstrip(b"\0")
        try:
            size = int(block[124:135], 8)
            if block != tar.header(name, size):
                break
        except ValueError:
            break
        data = at + tar.BLOCK_BYTES
        at = data + size + -size % tar.BLOCK_BYTES
        if at > window.stop:
            break
        yield tar.Member(os.fsdecode(name), "file", data, size)
    else:
        return
    for member in tar.members(window.descriptor):
        if member.offset > at:
            yield member


def _suffix(member: tar.Member) -> str:
    return member.name.partition(".")[2]


def _index_line(members: list[tar.Member]) -> str:
    return " ".join(f"{_suffix(member)} {member.offset} {member.size} {member.name}" for member in members)


def _image_differs(image: memoryview, row: _Row, decode: bool) -> str | None:
    if xxhash.xxh3_64_intdigest(image) != row.xxh3_64:
        return "its bytes are not what they were (the hash differs)"
    if decode:
        try:
            facts = check_image(bytes(image))
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
