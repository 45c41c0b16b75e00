"""Kinds of files: which are images, by name or by their first bytes, and what all others are called in counts."""

import os
import re
from collections.abc import Callable

IMAGE_EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".jfi", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".webp"),
        *(".bmp", ".dib", ".tif", ".tiff", ".gtiff", ".btf", ".tf8", ".ppm", ".pgm", ".pbm", ".pnm", ".gif"),
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jpm", ".avif", ".avifs", ".heic", ".heif", ".hif", ".jxl"),
    )
)
"""Extensions that make a file an image by name, so that it ends up in a shard or in the quarantine."""

ARRAY_EXTENSIONS = frozenset((".npy", ".dcm", ".dicom"))
"""Further ones, if images may have any number of channels and any depth."""

RAW_EXTENSIONS = frozenset(
    (
        *(".3fr", ".arw", ".cr2", ".cr3", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw"),
        *(".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".sr2", ".srf", ".srw", ".x3f"),
    )
)
"""Camera raw files. Many are a TIFF whose first picture is a thumbnail, so that their bytes must not decide."""

_TEXTS = frozenset(
    (
        *(".cfg", ".cls", ".csv", ".html", ".ini", ".json", ".jsonl", ".log", ".mat", ".md", ".npy", ".npz"),
        *(".parquet", ".pkl", ".pt", ".py", ".rst", ".sh", ".tsv", ".txt", ".xml", ".yaml", ".yml"),
    )
)
"""Common companions of images, whose bytes are not looked at: there may be as many of them as images."""

HEAD_BYTES = 132
"""Bytes at the beginning of a file that `is_image_head` looks at, if it has so many."""

LEAST_BYTES = 16
"""Bytes that a file has at least whose first ones are looked at."""

_HEAD = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|BM....\0\0\0\0|II[*+]\0|MM\0[*+]|GIF8[79]a|P[1-6]\s[\s\d#]|"
    rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  |....ftyp(?:avi[fs]|hei[cxms]|hevc|mif1|msf1)|\xff\x0a\xff|\0\0\0\x0cJXL ",
    re.DOTALL,
)
_ARRAY_HEAD = re.compile(rb"\x93NUMPY|.{128}DICM", re.DOTALL)
_PACKED = (".zip", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".tzst", ".lz4", ".7z", ".rar")


def is_image_name(name: str, arrays: bool = False) -> bool:
    """Whether a file is an image by its name; `arrays` says that it need not be one of 8-bit RGB."""
    return extension(name) in IMAGE_EXTENSIONS or (arrays and extension(name) in ARRAY_EXTENSIONS)


def refused_by_name(name: str) -> str | None:
    """Return why an image is set aside for its name alone, as camera raw files are; None for all others."""
    return "unsupported format: camera raw (convert it to JPEG or PNG first)" if is_raw_name(name) else None


def is_image(name: str, size: int, head: Callable[[], bytes], arrays: bool = False) -> bool:
    """Whether a file ends up in a shard or in the quarantine: as an image or camera raw file by name, or by its bytes.

    `head` returns the file's first HEAD_BYTES; it is called only where the name says nothing and `size` suffices.
    """
    return (
        is_image_name(name, arrays)
        or is_raw_name(name)
        or (size >= LEAST_BYTES and may_hide_an_image(name) and is_image_head(head(), arrays))
    )


def is_raw_name(name: str) -> bool:
    """Whether a file is a camera's raw file by its name."""
    return extension(name) in RAW_EXTENSIONS


def is_packed_name(name: str) -> bool:
    """Whether a file is a compressed one or an archive by its name, other than a plain tar."""
    return name.lower().endswith(_PACKED)


def may_hide_an_image(name: str) -> bool:
    """Whether it is worth looking at the first bytes of a file that is no image by its name."""
    return extension(name) not in _TEXTS and not is_packed_name(name) and not name.lower().endswith(".tar")


def is_image_head(head: bytes, arrays: bool = False) -> bool:
    """Whether a file is an image by its first HEAD_BYTES; `arrays` says that it need not be one of 8-bit RGB."""
    return _HEAD.match(head) is not None or (arrays and _ARRAY_HEAD.match(head) is not None)


def extension(name: str) -> str:
    """Return a file's extension in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  (pathlib is slow, files are many)


def kind(name: str) -> str:
    """Return what a file that is no image is counted as: ".txt", ".tar.gz", "no extension"."""
    last = extension(name)
    if is_packed_name(name) and extension(name[: -len(last)]) == ".tar":
        last = f".tar{last}"
    return os.fsencode(last).decode("utf-8", "backslashreplace") or "no extension"
