"""Check of one shard against its manifest, in one pass from its first byte to its last.

Everything is checked of a tar that `coma shard` wrote: members, images, labels, .json files, its ending and its .idx.
Of a tar that somebody else wrote and `coma index` indexed, only the images are checked.
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
from coma.shards.check.tar_reader import TarReader, extension_of, index_line, samples
from coma.shards.files import as_local, store_errors_as_oserror
from coma.shards.images.masks import MASK_EXTENSION, decode_mask
from coma.shards.images.options import MOST_PIXELS
from coma.shards.images.prepare import EXTENSIONS, BadImageError, ImageFacts
from coma.shards.manifest import Manifest
from coma.shards.manifest.mask_coding import MaskCoding

_MAX_NAMED = 1000  # samples of one shard that are not in the manifest

Decode = Callable[[bytes], ImageFacts]


@dataclass(frozen=True)
class Problem:
    """A difference. `key` is empty if it concerns the whole shard, `shard` if it concerns the split or data set."""

    split: str
    shard: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Row:
    """A sample's row in the manifest."""

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
    mask: "_MaskRow | None" = None


@dataclass(frozen=True, slots=True)
class _MaskRow:
    """What the manifest says of a sample's mask."""

    offset: int
    size: int
    xxh3_64: int
    source: str


def check_shard(
    manifest: Manifest, shard: int, indexed: bool, decode: Decode | None, advance: Callable[[int], None]
) -> list[Problem]:
    """Return what differs in shard number `shard`; `indexed` says that `coma shard` did not write it.

    `decode` decodes an image and may raise BadImageError; `advance` is called with the bytes of each image that was
    checked.
    """
    path = manifest.folder / manifest.shards[shard]
    check = _ShardCheck(_rows(manifest, shard), decode, advance, manifest.mask_coding)
    check_tar = check.check_indexed_tar if indexed else check.check_tar
    try:
        with as_local(path) as local:
            descriptor = os.open(local, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe must not block
            try:
                check_tar(descriptor)
            finally:
                os.close(descriptor)
        if not indexed:
            check.check_dali_index(path.with_suffix(".idx"))
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)  # a store's error has no strerror
        check.add("", f"cannot be read: {'no such file' if missing else error.strerror or error}")
    return [Problem(manifest.split, path.name, key, reason) for key, reason in check.problems]


class _ShardCheck:
    """The check of one shard; `problems` collects (key, reason)."""

    def __init__(
        self,
        rows: list[_Row],
        decode: Decode | None,
        advance: Callable[[int], None],
        mask_coding: MaskCoding | None = None,
    ) -> None:
        self.rows = rows
        self.mask_coding = mask_coding
        self.decode = decode
        self.advance = advance
        self.problems: list[tuple[str, str]] = []
        self.index_lines: list[str] = []
        self.damaged = False  # the end of the tar was not reached

    def add(self, key: str, reason: str) -> None:
        self.problems.append((key, reason))

    def check_tar(self, descriptor: int) -> None:
        """Check a tar that `coma shard` wrote."""
        reader = TarReader(descriptor)
        rows = {row.key: row for row in self.rows}
        missing = dict(rows)
        end = unlisted = 0
        try:
            for key, members in samples(reader):
                end = members[-1].offset + members[-1].size + -members[-1].size % tar.BLOCK_BYTES
                self.index_lines.append(index_line(members))
                if (row := missing.pop(key, None)) is not None:
                    self._check_sample(reader, row, members)
                else:
                    unlisted += 1
                    if unlisted <= _MAX_NAMED:
                        self.add(key, "is in the tar twice" if key in rows else "is not in the manifest")
            self._check_ending(reader, end)
        except tar.TarError as error:
            self._add_damage(error)
        if unlisted > _MAX_NAMED:
            self.add("", f"{unlisted:,} samples are not in the manifest; the first {_MAX_NAMED:,} are named")
        self._check_unreached(reader, missing.values())

    def check_indexed_tar(self, descriptor: int) -> None:
        """Check the images of a tar that somebody else wrote."""
        reader = TarReader(descriptor)
        missing = {row.offset: row for row in self.rows}
        try:
            for member in tar.members(descriptor):
                row = missing.pop(member.offset, None) if member.kind == "file" else None
                if row is not None:
                    self._check_image(reader, row, member.size)
        except tar.TarError as error:
            self._add_damage(error)
        self._check_unreached(reader, missing.values())

    def check_dali_index(self, path: Path) -> None:
        """Check DALI's index against the members of the tar."""
        try:
            with store_errors_as_oserror(path):
                lines = path.read_bytes().decode("utf-8", "replace").split("\n")
        except FileNotFoundError:
            self.add("", f"{path.name} is missing: DALI needs it to read the tar")
            return
        except OSError as error:
            self.add("", f"{path.name} cannot be read: {error.strerror or error}")
            return
        expected = [f"v1.2 {len(self.index_lines)}", *self.index_lines, ""]
        if lines != expected and not self.damaged:
            common = zip(lines, expected, strict=False)
            number = next((i for i, (line, other) in enumerate(common) if line != other), len(expected) - 1)
            self.add("", f"{path.name} is not the tar's index: line {number + 1} differs")

    def _check_sample(self, reader: TarReader, row: _Row, members: list[tar.Member]) -> None:
        extension = EXTENSIONS.get(row.format, row.format)
        expected = {extension, "json"} if row.label is None else {extension, "json", "cls"}
        expected |= set() if row.mask is None else {MASK_EXTENSION}
        files = {extension_of(member): member for member in members if member.kind == "file"}
        add = partial(self.add, row.key)
        if files.keys() != expected or len(members) != len(expected):
            for one in sorted(expected - files.keys()):
                add(f"lacks its .{one}")
            for one in sorted({extension_of(member) for member in members} - expected):
                add(f"has a member too many: .{one}")
            if len(members) > len({member.name for member in members}):
                add("has a member twice")
        for each in members:
            if reader.read(each.offset + each.size, len(zeros := tar.padding(each.size))) != zeros:
                add(f"something follows its .{extension_of(each)} that is not zero")
        if (image := files.get(extension)) is not None:
            if image.offset == row.offset:
                self._check_image(reader, row, image.size)
            else:
                add(f"its image lies at byte {image.offset:,} of the tar, not at {row.offset:,}")
        if row.mask is not None and (mask := files.get(MASK_EXTENSION)) is not None:
            if (mask.offset, mask.size) != (row.mask.offset, row.mask.size):
                add(
                    f"its mask has {mask.size:,} bytes from byte {mask.offset:,} of the tar on, not {row.mask.size:,} "
                    f"from {row.mask.offset:,}"
                )
            else:
                self._check_mask(reader, row, row.mask)
        if row.label is not None and (member := files.get("cls")) is not None:
            label = bytes(reader.read(member.offset, member.size))
            if label != str(row.label).encode():
                add(f"its .cls says {label[:20].decode('utf-8', 'replace')}, not {row.label}")
        if (member := files.get("json")) is not None:
            reason = _json_difference(bytes(reader.read(member.offset, member.size)), row)
            if reason is not None:
                add(reason)

    def _check_image(self, reader: TarReader, row: _Row, size: int) -> None:
        if size != row.size:
            self.add(row.key, f"its image has {size:,} bytes in the tar, not {row.size:,}")
        elif (reason := _image_difference(reader.read(row.offset, row.size), row, self.decode)) is not None:
            self.add(row.key, reason)
        self.advance(row.size)

    def _check_mask(self, reader: TarReader, row: _Row, mask: _MaskRow) -> None:
        data = reader.read(mask.offset, mask.size)
        if xxhash.xxh3_64_intdigest(data) != mask.xxh3_64:
            self.add(row.key, "its mask's bytes are not what they were (the hash differs)")
        elif self.decode is not None and self.mask_coding is not None:
            try:
                height, width = decode_mask(bytes(data), self.mask_coding, MOST_PIXELS).shape
            except BadImageError as error:
                self.add(row.key, f"its mask does not decode: {error}")
            else:
                if (width, height) != (row.width, row.height):
                    self.add(row.key, f"its mask is {width}x{height} pixels, not {row.width}x{row.height}")

    def _check_ending(self, reader: TarReader, end: int) -> None:
        """Check the zeros that follow the last member, which ends at byte `end`."""
        after = reader.stop - end
        expected = len(tar.ending(end))
        if after < expected:
            self.add("", f"cut short: {expected - after:,} of the zeros at its end are missing")
        elif after > expected or any(reader.read(end, expected)):
            junk = after - expected if after > expected else expected
            self.add("", f"{junk:,} bytes of something else follow its end")

    def _add_damage(self, error: tar.TarError) -> None:
        self.damaged = True
        self.add("", str(error))

    def _check_unreached(self, reader: TarReader, rows: Iterable[_Row]) -> None:
        """Check the images of samples that were not met in the tar, at the bytes that the manifest gives."""
        whole = []
        for row in rows:
            lost = row.offset + row.size - reader.stop
            if lost > 0:
                self.add(row.key, f"the shard ends {lost:,} bytes before the image does")
            elif (reason := _image_difference(reader.read(row.offset, row.size), row, self.decode)) is not None:
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
    class_name = [None if names is None or one is None else names[one] for one in label]
    numbers = (manifest.offset, manifest.size, manifest.width, manifest.height)
    columns = [manifest.keys(rows), *(column[of].tolist() for column in numbers), manifest.formats(rows)]
    columns += [label, class_name, manifest.xxh3_64[of].tolist(), manifest.sources(rows)]
    masks: list[_MaskRow | None] = [None] * len(rows)
    if manifest.mask_offset is not None and manifest.mask_size is not None and manifest.mask_xxh3_64 is not None:
        of_masks = (manifest.mask_offset, manifest.mask_size, manifest.mask_xxh3_64)
        values = zip(*(column[of].tolist() for column in of_masks), manifest.mask_sources(rows), strict=True)
        masks = [_MaskRow(*each) for each in values]
    return [_Row(*values) for values in zip(*columns, masks, strict=True)]


def _image_difference(image: memoryview, row: _Row, decode: Decode | None) -> str | None:
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


def _json_difference(data: bytes, row: _Row) -> str | None:
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
    if row.mask is not None:
        expected |= {"mask_source": row.mask.source, "mask_xxh3_64": f"{row.mask.xxh3_64:016x}"}
    for name, value in expected.items():
        if name not in about:
            return f"its .json lacks {name}"
        if about[name] != value:
            return f"its .json says {name} {str(about[name])[:80]!r}, not {str(value)!r}"
    return None
