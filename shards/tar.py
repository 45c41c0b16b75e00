"""Tar files: USTAR headers, byte for byte as webdataset.TarWriter writes them, and a reader for untrusted tars.

The standard library's tarfile keeps an object for every member and believes any size that a header claims, which is
too slow for millions of small images and too trusting for files that somebody else made.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK_BYTES = 512
_RECORD_BYTES = 20 * BLOCK_BYTES  # a tar is padded to a multiple of this
_MAX_USTAR_BYTES = 8**11 - 1
_MAX_EXTRA_BYTES = 1 << 20  # of a long name or PAX records (extended attributes make them long)
_MAX_TAIL_BYTES = 1 << 20  # searched for another archive after the end of one
_BEFORE_SIZE = b"0000444\0" + b"0000000\0" * 2  # mode, user, group
_AFTER_SUM = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)  # a plain file, no link, nobody's, no prefix
_FIXED_SUM = sum(_BEFORE_SIZE) + sum(b"0" * 11) + 8 * ord(" ") + sum(_AFTER_SUM)  # with the time 0
_KINDS = {b"0": "file", b"\0": "file", b"7": "file", b"5": "folder", b"1": "link", b"2": "link"}
_WITHOUT_DATA = b"123456"  # links, devices, folders, pipes: tarfile skips no data after them, whatever they claim
_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
    b"PK\3\4": ("zip", "unzip"),
    b"7z\xbc\xaf\x27\x1c": ("7-Zip", "7z x"),
    b"Rar!": ("RAR", "unrar"),
}


class TarError(Exception):
    """A tar that is damaged or cut short; the message says where."""


class PackedTarError(TarError):
    """Not a tar but something compressed, which may hold one; the message says how to unpack it."""


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a tar."""

    name: str
    """Name as in the archive, with undecodable bytes as surrogates."""
    kind: str
    """"file", "folder", "link" (hard or symbolic) or "special"."""
    offset: int
    """First byte of its data, in the file that was read."""
    size: int
    """Bytes of its data."""


def header(name: bytes, size: int) -> bytes:
    """Return the block that precedes a file's data. Raises ValueError for a name or size beyond USTAR's limits."""
    if not 0 < len(name) <= 100 or not 0 <= size <= _MAX_USTAR_BYTES:
        raise ValueError(f"a USTAR member cannot be called {name!r} and have {size} bytes")
    digits = b"%011o" % size
    checksum = _FIXED_SUM + sum(name) + sum(digits)
    return b"%b%b%b\x0000000000000\x00%06o\0 %b" % (name.ljust(100, b"\0"), _BEFORE_SIZE, digits, checksum, _AFTER_SUM)


def padding(size: int) -> bytes:
    """Return the zeros that follow `size` bytes of data."""
    return bytes(-size % BLOCK_BYTES)


def ending(size: int) -> bytes:
    """Return the end of an archive whose members take `size` bytes."""
    return bytes(2 * BLOCK_BYTES + -(size + 2 * BLOCK_BYTES) % _RECORD_BYTES)


def members(descriptor: int, start: int = 0, stop: int | None = None) -> Iterator[Member]:
    """Yield the members of the tar in the bytes [start, stop) of an open file, of which only headers are read.

    V7, USTAR, GNU and PAX archives are read as tarfile does, in bounded memory whatever their headers claim. The zero
    blocks at the end may be missing, as some tools omit them.
    Raises TarError where the archive is damaged or truncated, after the members before that.
    """
    stop = os.fstat(descriptor).st_size if stop is None else stop
    at = start
    extras = _Extras()
    while at < stop or at == start or extras.pending:
        block = os.pread(descriptor, BLOCK_BYTES, at) if at + BLOCK_BYTES <= stop else b""
        if len(block) < BLOCK_BYTES:
            if at == start:
                raise _not_a_tar(os.pread(descriptor, max(0, stop - start), start))
            raise TarError(f"cut short: a header is missing at byte {at:,}")
        if not any(block):
            _refuse_more(descriptor, at, stop)
            break
        kind, size, named = block[156:157], _number(block[124:136]), _name(block)
        if size is None or not _has_valid_checksum(block):
            damage = TarError(f"damaged: there is no header at byte {at:,}")
            raise _not_a_tar(block) if at == start else damage
        extends = kind in b"LKxXg"
        if not extends and extras.size is not None:
            size = extras.size
        if kind in _WITHOUT_DATA or (kind == b"\0" and named.endswith(b"/")):
            size = 0
        data = at + BLOCK_BYTES
        if kind == b"S":
            data = _after_sparse_map(descriptor, block, data, stop)
        after = data + size + -size % BLOCK_BYTES
        if after > stop:
            follow = "its padding is missing" if data + size <= stop else f"{max(0, stop - data):,} follow"
            raise TarError(f"cut short: the member at byte {at:,} claims {size:,} bytes, {follow}")
        if extends:
            extras.add(kind, _extra(descriptor, kind, data, size))
        else:
            name = named if extras.name is None else extras.name
            what = "special" if extras.sparse else _KINDS.get(kind, "special")
            yield Member(os.fsdecode(name), "folder" if name.endswith(b"/") else what, data, size)
            extras = _Extras()
        at = after


def has_ending(descriptor: int) -> bool:
    """Whether an open file ends in zero blocks, as tars do unless they were cut between two members."""
    size = os.fstat(descriptor).st_size
    return size >= 2 * BLOCK_BYTES and not any(os.pread(descriptor, 2 * BLOCK_BYTES, size - 2 * BLOCK_BYTES))


class _Extras:
    """Facts about a member from the extension headers before its own."""

    def __init__(self) -> None:
        self.name: bytes | None = None
        self.size: int | None = None
        self.sparse = False
        self.pending = False

    def add(self, kind: bytes, data: bytes) -> None:
        self.pending = self.pending or kind != b"g"
        if kind == b"L":
            self.name = data.split(b"\0", 1)[0]
        elif kind in b"xX":
            records = _pax(data)
            self.name = records.get(b"GNU.sparse.name", records.get(b"path", self.name))
            self.sparse = self.sparse or any(key.startswith(b"GNU.sparse.") for key in records)
            if (digits := records.get(b"size")) is not None:
                if not digits.isdigit():
                    raise TarError(f"damaged: PAX records claim a size of {digits[:20]!r}")
                self.size = int(digits.lstrip(b"0")[:20] or b"0")


def _extra(descriptor: int, kind: bytes, data: int, size: int) -> bytes:
    """Read a long name or PAX records, except for PAX records of the whole archive and targets of links."""
    if kind in b"gK":
        return b""
    if size > _MAX_EXTRA_BYTES:
        raise TarError(f"damaged: the header at byte {data - BLOCK_BYTES:,} claims a name of {size:,} bytes")
    extra = os.pread(descriptor, size, data)
    if len(extra) < size:
        raise TarError(f"cut short: byte {data + len(extra):,} cannot be read")
    return extra


def _not_a_tar(beginning: bytes) -> TarError:
    for magic, (what, unpack) in _PACKED.items():
        if beginning.startswith(magic):
            return PackedTarError(f"not a tar but packed with {what}: unpack it first ({unpack})")
    return TarError("not a tar: there is no header at byte 0" if beginning else "not a tar: it is empty")


def _refuse_more(descriptor: int, end: int, stop: int) -> None:
    """Raise TarError if another archive follows the end, which tarfile would ignore silently."""
    for at in range(end, min(stop, end + _MAX_TAIL_BYTES) - BLOCK_BYTES + 1, BLOCK_BYTES):
        block = os.pread(descriptor, BLOCK_BYTES, at)
        if any(block):
            if len(block) == BLOCK_BYTES and _has_valid_checksum(block):
                raise TarError(f"two archives in one: the first ends at byte {end:,}, another follows at byte {at:,}")
            return


def _after_sparse_map(descriptor: int, block: bytes, at: int, stop: int) -> int:
    """Return the first byte of a GNU sparse file's data, which follows the blocks that continue its map."""
    continues = block[482]
    while continues:
        if at + BLOCK_BYTES > stop:
            raise TarError(f"cut short: the map of a sparse file goes on at byte {at:,}")
        continues = os.pread(descriptor, BLOCK_BYTES, at)[504:505] not in (b"", b"\0")
        at += BLOCK_BYTES
    return at


def _has_valid_checksum(block: bytes) -> bool:
    """Whether a header's checksum is right, over unsigned bytes or, as in old tars, over signed ones."""
    claimed = _number(block[148:156])
    unsigned = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if claimed == unsigned:
        return True
    high = sum(byte > 127 for byte in block) - sum(byte > 127 for byte in block[148:156])
    return claimed == unsigned - 256 * high


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _number(field: bytes) -> int | None:
    """Parse a numeric field, octal digits or GNU's base 256; return None if it is neither, or negative."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    if digits.strip(b"01234567"):
        return None
    return int(digits or b"0", 8)


def _pax(records: bytes) -> dict[bytes, bytes]:
    """Parse PAX records, each "<length> <key>=<value>\\n" (POSIX.1-2001, pax, extended header)."""
    values = {}
    at = 0
    while at < len(records):
        digits = records[at : at + 8].partition(b" ")[0]
        stop = at + int(digits) if digits.isdigit() else at
        record = records[at + len(digits) + 1 : stop]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or not record.endswith(b"\n") or stop > len(records):
            raise TarError(f"damaged: no PAX record in {records[at : at + 20]!r}")
        values[key] = value
        at = stop
    return values
