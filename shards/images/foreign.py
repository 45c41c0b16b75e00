"""Names for files that are not what their extension says, by their first bytes."""

HEAD_BYTES = 2048
"""Bytes at the beginning of a file that decide."""

_FETCH = "a failed download leaves such a file; fetch it again"
_UNPACK = "unpack it first"
_FOREIGN = (  # first bytes in lower case, what they are, the way out
    (b"version https://git-lfs", "a Git LFS pointer (`git lfs pull` fetches what it stands for)", ""),
    (b"<html", "an HTML page", _FETCH),
    (b"<!doctype html", "an HTML page", _FETCH),
    (b"<error", "an XML message", _FETCH),
    (b"{", "JSON", _FETCH),
    (b"<svg", "SVG, a drawing", ""),
    (b"%pdf", "a PDF", ""),
    (b"pk\x03\x04", "a ZIP archive", _UNPACK),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"bzh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zxz\0", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
)


def foreign_kind(head: bytes) -> str | None:
    """Return what a file is that should be an image, from its first HEAD_BYTES; None if they tell nothing."""
    return _recognised(head)[0]


def foreign_file(head: bytes) -> str | None:
    """Return what a file is that should be a table or a tar, and the way out; None if its bytes tell nothing."""
    if not head:
        return f"empty: it has no bytes ({_FETCH})"
    kind, way_out = _recognised(head)
    return f"{kind}; {way_out}" if way_out else kind


def _recognised(head: bytes) -> tuple[str | None, str]:
    text = head[:HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    marked_up = text.startswith((b"<?xml", b"<!--", b"<!doctype svg"))
    for start, kind, way_out in _FOREIGN:
        if text.startswith(start) or (marked_up and start.startswith(b"<") and start in text):
            return kind, way_out
    return None, ""
