"""USTAR, written byte for byte as webdataset.TarWriter would, and any tar walked without trusting it.

The standard library's tarfile makes an object of every member, keeps it, and believes whatever size a header
claims; that is too dear for millions of small images, and too trusting for files that somebody else made.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK_BYTES = 512
_RECORD_BYTES = 20 * BLOCK_BYTES  # a tar is padded to a multiple of this
_MAX_USTAR_BYTES = 8**11 - 1
_MAX_HEADER_BYTES = 1 << 16  # of a long name or PAX records: no file system takes longer names
_BEFORE_SIZE = b"0000444\0" + b"0000000\0" * 2  # mode, user, group
_AFTER_SUM = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)  # a plain file, no link, nobody's, no prefix
_FIXED_SUM = sum(_BEFORE_SIZE) + sum(b"0" * 11) + 8 * ord(" ") + sum(_AFTER_SUM)  # with the time 0
_KINDS = {b"0": "file", b"\0": "file", b"7": "file", b"5": "folder", b"1": "link", b"2": "link"}


class TarError(Exception):
    """A tar that is damaged or cut short; the message says where."""


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a tar."""

    name: str
    """As the archive has it; undecodable bytes as surrogates."""
    kind: str
    """"file", "folder", "link" (hard or symbolic) or "special"."""
    offset: int
    """Of the first byte of its data, in the file that was walked."""
    size: int
    """Bytes of its data."""


def header(name: bytes, size: int) -> bytes:
    """Return the block that precedes a file's data. Raises ValueError past USTAR's limits."""
    if not 0 < len(name) <= 100 or not 0 <= size <= _MAX_USTAR_BYTES:
        raise ValueError(f"a USTAR member cannot be called {name!r} and have {size} bytes")
    digits = b"%011o" % size
    checksum = _FIXED_SUM + sum(name) + sum(digits)
    return b"%b%b%b\x0000000000000\x00%06o\0 %b" % (
        name.ljust(100, b"\0"),
        _BEFORE_SIZE,
        digits,
        checksum,
        _AFTER_SUM,
    )


def padding(size: int) -> bytes:
    """Return the zeros that follow `size` bytes of data."""
    return bytes(-size % BLOCK_BYTES)


def ending(size: int) -> bytes:
    """Return the end of an archive whose members take `size` bytes."""
    return bytes(2 * BLOCK_BYTES + -(size + 2 * BLOCK_BYTES) % _RECORD_BYTES)


def members(descriptor: int, start: int = 0, stop: int | None = None) -> Iterator[Member]:
    """Walk the tar that lies in the bytes [start, stop) of an open file; nothing but its headers is read.

    Reads USTAR, GNU long names and PAX paths and sizes; memory is bounded whatever the headers claim.
    Raises TarError where the archive is damaged or ends too early, after the members that are whole.
    """
    stop = os.fstat(descriptor).st_size if stop is None else stop
    at = start
    long_name: bytes | None = None
    long_size: int | None = None
    while True:
        if at == stop and at > start and long_name is None:
            return  # without the two zero blocks, as some tools leave it
        block = os.pread(descriptor, BLOCK_BYTES, at) if at + BLOCK_BYTES <= stop else b""
        if len(block) < BLOCK_BYTES:
            raise TarError(f"cut short: a header is missing at byte {at:,}")
        if not any(block):
            return
        kind, claimed = block[156:157], _number(block[124:136])
        if claimed is None or _number(block[148:156]) != sum(block[:148]) + 8 * ord(" ") + sum(block[156:]):
            what = "not a tar" if at == start else "damaged"
            raise TarError(f"{what}: there is no header at byte {at:,}")
        size = claimed if long_size is None or kind in b"LKxg" else long_size
        data = at + BLOCK_BYTES
        after = data + size + -size % BLOCK_BYTES
        if data + size > stop:
            raise TarError(
                f"cut short: the member at byte {at:,} claims {size:,} bytes, {stop - data:,} follow"
            )
        at = min(after, stop)
        if kind in b"LKxg":
            if size > _MAX_HEADER_BYTES:
                raise TarError(f"damaged: the header at byte {at:,} claims a name of {size:,} bytes")
            extra = os.pread(descriptor, size, data)
            if kind == b"L":
                long_name = extra.split(b"\0", 1)[0]
            elif kind == b"x":
                records = _pax(extra)
                long_name = records.get(b"path", long_name)
                if (digits := records.get(b"size")) is not None and digits.isdigit():
                    long_size = int(digits[:20])
            continue
        name = long_name if long_name is not None else _name(block)
        long_name = long_size = None
        what = _KINDS.get(kind, "special")
        yield Member(os.fsdecode(name), "folder" if name.endswith(b"/") else what, data, size)


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _number(field: bytes) -> int | None:
    """Read a numeric field: octal digits, or GNU's base 256; None if it is neither, or negative."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    try:
        value = int(digits, 8) if digits else 0
    except ValueError:
        return None
    return value if value >= 0 else None


def _pax(records: bytes) -> dict[bytes, bytes]:
    """Read PAX records, each "<length> <key>=<value>\\n" (POSIX.1-2001, pax, extended header)."""
    found = {}
    while records:
        length, space, _ = records.partition(b" ")
        if not space or not length.isdigit() or not len(length) < int(length[:9]) <= len(records):
            break
        record = records[len(length) + 1 : int(length[:9])]
        key, _, value = record.rstrip(b"\n").partition(b"=")
        found[key] = value
        records = records[int(length[:9]) :]
    return found
