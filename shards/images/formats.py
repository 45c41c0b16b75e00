"""Open an image of the formats that are taken, and say what other bytes are.

Only these are opened: nothing that runs a program (PIL hands EPS to Ghostscript), or guesses (TGA).
"""

import functools
import io
import re
from contextlib import suppress

from PIL import Image, UnidentifiedImageError

FORMATS = {
    "JPEG": "jpeg",
    "MPO": "jpeg",  # a phone's JPEG with a second picture appended; every decoder shows the first
    "PNG": "png",
    "WEBP": "webp",
    "BMP": "bmp",
    "TIFF": "tiff",
    "PPM": "pnm",
    "GIF": "",
    "JPEG2000": "",
    "AVIF": "",
}
"""By PIL's name, what an image is called in the manifest; "" is always converted."""

_MAGIC = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.S),
    "BMP": re.compile(rb"BM"),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "GIF": re.compile(rb"GIF8[79]a"),
    "JPEG2000": re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  "),
}
_FOREIGN = (  # offset, magic, what it is
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"8BPS", "PSD"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"qoif", "QOI"),
    (0, b"DDS ", "DDS"),
    (0, b"P7\n", "PAM"),
    (0, b"\x01\xda", "SGI"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"II\xbc", "JPEG XR"),
    (0, b"%!PS", "EPS"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"SIMPLE  =", "FITS"),
    (128, b"DICM", "DICOM"),
)
_BRANDS = {  # of ISO media files
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),  # if Pillow is older than 11.3, or the file is damaged
    b"crx ": "CR3",
}
_NO_IMAGE = (
    (b"<svg", "SVG, a drawing"),
    (b"<html", "an HTML page"),
    (b"<!doctype html", "an HTML page"),
    (b"%pdf", "a PDF"),
    (b"version https://git-lfs", "a Git LFS pointer (`git lfs pull` fetches what it stands for)"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
)


class BadImageError(Exception):
    """An image that must not reach a shard; the message is the reason that the quarantine records.

    Reasons start with one of: empty, not an image, truncated, animated, unsupported format, bomb, unreadable.
    """


def opened(data: bytes, max_pixels: int) -> Image.Image:
    """Read an image's header; `max_pixels` is what a message about a bomb names.

    Raises:
        BadImageError: if it is none of the formats that are opened, or PIL refuses its size.
        Exception: whatever PIL raises over a damaged header.
    """
    try:
        return Image.open(io.BytesIO(data), formats=_names())
    except UnidentifiedImageError:
        name = next((name for name, magic in _MAGIC.items() if magic.match(data)), None)
        raise BadImageError(_foreign(data) if name is None else _header_fault(name, data)) from None
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise BadImageError(f"bomb: {pixels and pixels[0]} pixels, the limit is {max_pixels}") from None
    except OSError:
        if _MAGIC["WEBP"].match(data) and 8 + int.from_bytes(data[4:8], "little") > len(data):
            raise BadImageError("truncated: it is shorter than its header says") from None
        raise


def _header_fault(name: str, data: bytes) -> str:
    """Why PIL does not open an image of that format, which it does not say unless its plugin is asked."""
    try:
        Image.OPEN[name][0](io.BytesIO(data), "")
    except Exception as error:
        said = one_line(error)
        if said.startswith("cannot handle"):  # 12 bits, 2 components
            return f"unsupported format: {name}, {said}"
        if "checksum" in said:
            return f"unreadable: {said}"
    return "truncated: the header is cut"


@functools.cache
def _names() -> tuple[str, ...]:
    Image.preinit()
    from PIL import Jpeg2KImagePlugin, MpoImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401

    with suppress(ImportError):  # new in Pillow 11.3
        from PIL import AvifImagePlugin  # noqa: F401
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _foreign(data: bytes) -> str:
    """The reason for bytes that are none of the formats that are opened."""
    kind = next((kind for offset, magic, kind in _FOREIGN if data.startswith(magic, offset)), None)
    if data[4:8] == b"ftyp":
        kind = _BRANDS.get(data[8:12])
        if kind is None:
            return "not an image: a video"
    if kind is not None:
        return f"unsupported format: {kind} (convert it to JPEG or PNG first)"
    head = data[:2048].lstrip().lower()
    for start, thing in _NO_IMAGE:
        if head.startswith(start) or (
            head.startswith((b"<?xml", b"<!--", b"<!doctype svg")) and start in head
        ):
            return f"not an image: {thing}"
    return "not an image" if data.strip(b"\0") else "not an image: nothing but zeros"


def one_line(error: Exception) -> str:
    """What an error says, for a reason."""
    return " ".join(str(error).split())[:200] or type(error).__name__
