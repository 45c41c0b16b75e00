"""Image formats: which ones are opened, and names for bytes of all others.

Formats whose decoding runs a program (PIL hands EPS to Ghostscript) or guesses (TGA) are not opened.
"""

import functools
import io
import re
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from coma.shards.images import tiff
from coma.shards.images.foreign import HEAD_BYTES, foreign_kind

T = TypeVar("T")

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
"""PIL's name of a format → its name in the manifest; "" is a format that is always converted."""

MAGIC = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.S),
    "BMP": re.compile(rb"BM"),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "GIF": re.compile(rb"GIF8[79]a"),
    "JPEG2000": re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  "),
    "AVIF": re.compile(rb"....ftypavi[fs]", re.S),
}
_UNSUPPORTED = (  # offset, magic number, name of the format
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
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),  # if Pillow is older than 11.3
    b"crx ": "CR3",
}


_UNSUPPORTED_WORDS = re.compile("cannot handle|unsupported|not supported|unable to determine|unknown filter")
_CUT_WORDS = re.compile(r"truncated|end of|\beof\b|not enough|cannot load|expected to read")
_RARE_JPEGS = {  # start-of-frame marker → name; none of them is decoded by libjpeg
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical JPEG"),
    0xCB: "lossless JPEG with arithmetic coding",
    0xF7: "JPEG-LS",
}
_PIXELS_MARK = {"JPEG": b"\xff\xda", "PNG": b"IDAT"}
_libtiff_lock = threading.Lock()


class BadImageError(Exception):
    """An image that must not reach a shard; the message is the reason that the quarantine records.

    Reasons start with one of: empty, not an image, truncated, animated, unsupported format, bomb, unreadable.
    """


class Once(Generic[T]):
    """What is decoded when it is first asked for; damage that was found then is raised each time."""

    def __init__(self, decode: Callable[[], T]) -> None:
        self._decode = decode
        self._decoded: T | None = None
        self._fault: str | None = None

    def __call__(self) -> T:
        """Return it. Raises BadImageError."""
        if self._fault is not None:  # asked again, PIL hands out what it had decoded before it broke
            raise BadImageError(self._fault)
        if self._decoded is None:
            try:
                self._decoded = self._decode()
            except BadImageError as error:
                self._fault = str(error)
                raise
        return self._decoded


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Read an image's header; `max_pixels` is the limit that a message about a bomb names.

    Raises:
        BadImageError: the image has none of the formats in FORMATS, or PIL refuses its size.
        Exception: anything that PIL raises over a damaged header.
    """
    is_tiff = MAGIC["TIFF"].match(data)
    if what := tiff.unsupported(data) if is_tiff else _rare_jpeg(data):
        raise BadImageError(f"unsupported format: {what}")
    try:
        if is_tiff and tiff.has_separate_planes(data):
            return _open_by_libtiff(data)
        return Image.open(io.BytesIO(data), formats=_pil_formats())
    except UnidentifiedImageError:
        formats = _pil_formats()
        name = next((name for name, magic in MAGIC.items() if name in formats and magic.match(data)), None)
        raise BadImageError(refusal(data) if name is None else _header_fault(name, data)) from None
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise BadImageError(f"bomb: {pixels and pixels[0]} pixels, the limit is {max_pixels}") from None
    except OSError:
        if MAGIC["WEBP"].match(data) and 8 + int.from_bytes(data[4:8], "little") > len(data):
            raise BadImageError("truncated: it is shorter than its header says") from None
        raise


def _rare_jpeg(data: bytes) -> str | None:
    """Return the name of a kind of JPEG that is not decoded; None for the usual kinds, and for other formats."""
    at = 2 if MAGIC["JPEG"].match(data) else len(data)
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data) and data[at + 1] != 0xDA:  # start of scan
        if data[at + 1] in _RARE_JPEGS:
            return _RARE_JPEGS[data[at + 1]]
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


def _open_by_libtiff(data: bytes) -> Image.Image:
    """Open a TIFF of separate planes: PIL by itself mixes them up if they are not compressed."""
    with _libtiff_lock:
        TiffImagePlugin.READ_LIBTIFF = True
        try:
            return Image.open(io.BytesIO(data), formats=("TIFF",))
        finally:
            TiffImagePlugin.READ_LIBTIFF = False


def _header_fault(name: str, data: bytes) -> str:
    """Say why PIL cannot open an image of this format: only a direct call of its plugin tells."""
    if name == "TIFF":
        what = tiff.unopened(data)
        return "truncated: the header is cut" if what is None else f"unsupported format: {what}"
    if name in _PIXELS_MARK and _PIXELS_MARK[name] not in data:
        return "truncated: the header is cut"
    try:
        Image.OPEN[name][0](io.BytesIO(data), "")
    except Exception as error:
        return fault(error, name)
    return "unreadable: the header is damaged"


def fault(error: Exception, name: str | None = None) -> str:
    """Return the reason that an error of PIL's gives for setting an image aside; `name` is that of the format."""
    message = one_line(error)
    words = message.lower()
    if _UNSUPPORTED_WORDS.search(words):  # 12 bits, 2 components
        what = re.sub("(?i)^unsupported ", "", message)
        return f"unsupported format: {name}, {what}" if name else f"unsupported format: {what}"
    if "not identified" in words:
        return "unreadable: its header gives no size, or none of the kinds of pixels"
    cut = isinstance(error, EOFError) or isinstance(error.__cause__, EOFError | IndexError | struct.error)
    kind = "truncated" if cut or _CUT_WORDS.search(words) else "unreadable"
    return f"{kind}: {message}"


@functools.cache
def _pil_formats() -> tuple[str, ...]:
    """Register PIL's plugins for FORMATS and return the names of those that are there."""
    Image.preinit()
    from PIL import Jpeg2KImagePlugin, MpoImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401

    with suppress(ImportError):  # new in Pillow 11.3
        from PIL import AvifImagePlugin  # noqa: F401
    return tuple(name for name in FORMATS if name in Image.OPEN)


def name_of(data: bytes) -> str | None:
    """Return the name of a format that is opened, by its first bytes; None for all others."""
    return next((name for name, magic in MAGIC.items() if magic.match(data)), None)


def refusal(data: bytes) -> str:
    """Return the reason for refusing bytes that have none of the formats in FORMATS."""
    kind = next((kind for offset, magic, kind in _UNSUPPORTED if data.startswith(magic, offset)), None)
    if data[4:8] == b"ftyp":
        kind = _BRANDS.get(data[8:12])
        if kind is None:
            return "not an image: a video"
    if kind is not None:
        return f"unsupported format: {kind} (convert it to JPEG or PNG first)"
    if (foreign := foreign_kind(data[:HEAD_BYTES])) is not None:
        return f"not an image: {foreign}"
    return "not an image" if data.strip(b"\0") else "not an image: nothing but zeros"


def one_line(error: Exception) -> str:
    """Return an error's message as one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
