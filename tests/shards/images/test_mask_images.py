"""Values of the pixels of masks, whatever kind of picture holds them."""

import io
import struct
import zlib

import numpy as np
import pytest
from drawn import encoded
from masked import as_png, draw_ids
from PIL import Image

from coma.errors import UsageError
from coma.shards.images.formats import BadImageError
from coma.shards.images.masks import decode_mask, mask_values
from coma.shards.manifest.mask_coding import MaskCoding, coding_from_json, grey_coding

IDS = draw_ids(3, 40, 30)
FOUR = grey_coding(4)


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def packed_png(values: np.ndarray, bits: int, kind: int = 0) -> bytes:
    """A PNG of 1, 2 or 4 bits a pixel, grey (0) or of palette indices (3), which PIL cannot write for grey."""
    height, width = values.shape
    padded = np.pad(values, ((0, 0), (0, -width % (8 // bits))))
    shifts = np.arange(8 - bits, -1, -bits)
    rows = (padded.reshape(height, -1, 8 // bits) << shifts).sum(-1).astype(np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(3 * 2**bits))) if kind == 3 else b""
    body = chunk(b"IHDR", header) + palette + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", [0, 3], ids=["grey", "palette"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits(bits: int, kind: int) -> None:
    values = draw_ids(5, 43, 30, classes=2**bits, ignored=False)
    assert np.array_equal(decode_mask(packed_png(values, bits, kind), grey_coding(2**bits)), values)


CASES = {
    "grey": as_png(IDS),
    "palette": as_png(IDS, [i * 7 % 256 for i in range(768)]),
    "interlaced colours that are all grey": saved(Image.fromarray(np.stack([IDS] * 3, -1))),
    "opaque": saved(Image.fromarray(np.stack([IDS] * 3 + [np.full_like(IDS, 255)], -1))),
    "grey and opaque": saved(Image.merge("LA", [Image.fromarray(IDS), Image.new("L", (40, 30), 255)])),
    "16 bits": saved(Image.fromarray(IDS.astype(np.uint16))),
    "TIFF": saved(Image.fromarray(IDS), "TIFF", compression="tiff_lzw"),
    "TIFF of 16 bits": saved(Image.fromarray(IDS.astype(np.uint16)), "TIFF"),
    "BMP": saved(Image.fromarray(IDS), "BMP"),
    "PGM": saved(Image.fromarray(IDS), "PPM"),
}


@pytest.mark.parametrize("data", CASES.values(), ids=CASES)
def test_kinds_of_pictures(data: bytes) -> None:
    assert np.array_equal(decode_mask(data, FOUR), IDS)


def test_a_turned_mask_is_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(IDS)))
    assert np.array_equal(decode_mask(saved(stored, exif=exif), FOUR), IDS)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "mask damaged: it: empty"),
        (as_png(IDS)[:70], "mask damaged: it: truncated"),
        (b"some text that is no image", "mask damaged: it: not an image"),
        (encoded(1), "mask is lossy: it is a JPEG"),
        (encoded(1, form="WEBP"), "mask is lossy: it is a WEBP"),
        (encoded(1, form="PNG"), "mask in colours: it has three channels"),
        (saved(Image.fromarray(np.stack([IDS] * 4, -1))), "mask in colours: it is partly transparent"),
        (as_png(np.full((4, 4), 4, np.uint8)), "mask outside the classes: it holds 4; the classes are 0 to 3, 255"),
        (as_png(np.full((4, 4), 65535, np.uint16)), "mask outside the classes: it holds 65535; "),
    ],
    ids=("empty", "truncated", "text", "jpeg", "webp", "colours", "transparent", "outside", "outside of 8 bits"),
)
def test_what_is_no_mask(data: bytes, reason: str) -> None:
    with pytest.raises(BadImageError) as caught:
        decode_mask(data, FOUR)
    assert str(caught.value).startswith(reason)


def test_values_of_classes() -> None:
    coding = MaskCoding(("b", "a"), (7, 300), 0)
    values = np.array([[0, 7], [300, 7]], np.uint16)
    assert decode_mask(as_png(values), coding).tolist() == [[255, 0], [1, 0]]
    assert mask_values(as_png(values), "it") == ([0, 7, 300], False)
    assert coding_from_json(coding.to_json()) == coding


def test_colours() -> None:
    coding = MaskCoding(("a", "b"), (0x0A0B0C, 0xFF0000), 0x000000, in_colour=True)
    pixels = np.array([[[10, 11, 12], [255, 0, 0]], [[0, 0, 0], [255, 0, 0]]], np.uint8)
    assert decode_mask(saved(Image.fromarray(pixels)), coding).tolist() == [[0, 1], [255, 1]]
    palette = Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE, colors=3)
    assert decode_mask(saved(palette), coding).tolist() == [[0, 1], [255, 1]]
    pixels[0, 0] = 9
    with pytest.raises(BadImageError, match="it holds #090909; none of the 2 colours of the classes"):
        decode_mask(saved(Image.fromarray(pixels)), coding)


@pytest.mark.parametrize("classes", [0, 256, 10**9])
def test_as_many_classes_as_there_are_ids(classes: int) -> None:
    with pytest.raises(UsageError, match="give 1 to 255"):
        grey_coding(classes)
