"""Sequential reading of a tar that `coma shard` wrote: each byte is read once, header by header."""

import os
from collections.abc import Iterator

from coma.shards import tar

_READ_BYTES = 1 << 20
_MAX_MEMBERS = 64  # of one key: more are no sample, and are not kept together


class TarReader:
    """Reads a file forwards in large pieces. The bytes that it returns are valid until the next read."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.stop = os.fstat(descriptor).st_size
        self._piece = memoryview(bytearray(_READ_BYTES))
        self._start = self._end = 0  # bytes of the file that the piece holds

    def read(self, offset: int, size: int) -> memoryview:
        """Return the bytes [offset, offset + size), fewer where the file ends."""
        if offset < self._start or offset + size > self._end:
            self._fill(offset, size)
        return self._piece[offset - self._start : min(offset + size, self._end) - self._start]

    def _fill(self, offset: int, size: int) -> None:
        size = min(size, max(0, self.stop - offset))  # a damaged manifest may claim any size
        if size > len(self._piece):
            self._piece = memoryview(bytearray(size))
        self._start = self._end = offset
        while True:
            got = os.preadv(self.descriptor, [self._piece[self._end - offset :]], self._end)
            self._end += got
            if not got or self._end >= offset + size:
                break


def samples(reader: TarReader) -> Iterator[tuple[str, list[tar.Member]]]:
    """Yield the samples of a tar: (key, members). Raises TarError where it is damaged, after what precedes that."""
    key, group = "", list[tar.Member]()
    damage = None
    walk = _members(reader)
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


def _members(reader: TarReader) -> Iterator[tar.Member]:
    """Yield the members of a tar; from the first header that `coma shard` would write otherwise, by `tar.members`."""
    at = 0
    while any(block := bytes(reader.read(at, tar.BLOCK_BYTES))):
        name = block[:100].rstrip(b"\0")
        try:
            size = int(block[124:135], 8)
            if block != tar.header(name, size):
                break
        except ValueError:
            break
        data = at + tar.BLOCK_BYTES
        at = data + size + -size % tar.BLOCK_BYTES
        if at > reader.stop:
            break
        yield tar.Member(os.fsdecode(name), "file", data, size)
    else:
        return
    for member in tar.members(reader.descriptor):
        if member.offset > at:
            yield member


def extension_of(member: tar.Member) -> str:
    """Return what follows the key in a member's name."""
    return member.name.partition(".")[2]


def index_line(members: list[tar.Member]) -> str:
    """Return a sample's line in DALI's index."""
    return " ".join(f"{extension_of(each)} {each.offset} {each.size} {each.name}" for each in members)
