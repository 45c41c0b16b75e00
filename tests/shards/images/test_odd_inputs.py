"""Every odd input that we could think of, one generator each: set aside for the right reason, or kept and shown right.

Kept means that the stream's own decoder, given the bytes that go into the shard, shows what PIL shows of the
source, within one grey level on average, at the size that the manifest records.
"""

import base64
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from coma.shards.images.prepare import BadImageError, PixelOptions, Prepared, check_image, prepare_image
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard

WIDTH, HEIGHT = 60, 44
TURNED = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """An input, and what is to become of it."""

    make: Callable[[], bytes]
    kind: str | None = None
    """Of the reason for which it is set aside; None if it is kept."""
    converted: str | None = None
    """What Prepared.converted holds of a kept one; None if it passes untouched."""


# ---------------------------------------------------------------------------------------------- generators


def photo(mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Something smooth and colourful, alike nowhere, so that a wrong turn shows."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)  # type: ignore[arg-type]
    return file.getvalue()


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    return saved(photo(mode), "JPEG", **{"quality": 95, **options})


def png(image: Image.Image | None = None, **options: object) -> bytes:
    return saved(image or photo(), "PNG", **options)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def exif_block(orientation: int, order: str = "<", kind: int = 3, make_at: int | None = None) -> bytes:
    """An EXIF block of one or two entries, written by hand to be wrong where PIL would be right."""
    value = struct.pack(order + {1: "B", 3: "H", 4: "I"}[kind], orientation).ljust(4, b"\0")
    entries = [struct.pack(order + "HHI", 0x0112, kind, 1) + value]
    if make_at is not None:
        entries.insert(0, struct.pack(order + "HHII", 0x010F, 2, 40, make_at))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    return b"Exif\0\0" + head + b"".join(entries) + bytes(4)


def with_app1(*payloads: bytes) -> bytes:
    data = jpeg()
    blocks = b"".join(b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload for payload in payloads)
    return data[:2] + blocks + data[2:]


def without_adobe(data: bytes) -> bytes:
    """Drop the APP14 block."""
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def ycck() -> bytes:
    """CMYK stored as luma, chroma and K, as Photoshop does: the CMY planes, inverted, are an RGB picture."""
    ycc = np.asarray(photo().convert("YCbCr"))
    planes = np.dstack([255 - ycc, np.asarray(photo("L", seed=1)) // 3])
    data = bytearray(saved(Image.fromarray(planes, mode="CMYK"), "JPEG", quality=95, subsampling=0))
    data[data.index(b"Adobe") + 11] = 2  # the transform flag
    return bytes(data)


def arithmetic() -> bytes:
    """24x18 by `cjpeg -arithmetic`, which Pillow cannot write."""
    return base64.b64decode(
        "/9j/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4O"
        "DhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//yQARCAASABgDASIAAhEB"
        "AxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwDSFsYXMHFTEud8LTZy6hU5XjCFajBxZWhj09RNQOp5EsT2uHDxtjRjw3XyDEB/LKl2"
        "bSPLfKnbU3CfAo60IEByGQ/QHcPkaTOvV5GiG7k7q4TBoytIJBvwLwhKwZ70+TA08W2vkasX0hrQooOYfrHQDukUw//Z"
    )


def twelve_bit() -> bytes:
    data = bytearray(jpeg())
    data[data.index(b"\xff\xc0") + 4] = 12
    return bytes(data)


def changed(data: bytes, mark: bytes, offset: int, new: bytes) -> bytes:
    """Replace bytes at an offset from where `mark` first is."""
    at = data.index(mark) + offset
    return data[:at] + new + data[at + len(new) :]


def another_process(marker: int) -> bytes:
    """A JPEG whose frame says that it is coded in another way."""
    return changed(jpeg(), b"\xff\xc0", 1, bytes([marker]))


def cut(data: bytes, part: float) -> bytes:
    return data[: int(len(data) * part)]


def zero_tail(data: bytes) -> bytes:
    half = len(data) // 2
    return data[:half] + bytes(len(data) - half)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(pixels: npt.NDArray[np.generic], depth: int, colour: int, *extra: bytes, last: bytes = b"") -> bytes:
    """A PNG of big-endian samples, with chunks before and after the pixels."""
    height, width = pixels.shape[:2]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    body = header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + last + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def deep(bands: int) -> npt.NDArray[np.generic]:
    """16-bit samples whose low bytes differ from their high ones."""
    high = np.asarray(photo()).astype(np.uint16)[..., :bands]
    return ((high << 8) | (high ^ 0x55)).astype(">u2")


def with_text(key: str, text: str) -> bytes:
    info = PngInfo()
    info.add_text(key, text) if key.startswith("Raw") else info.add_itxt(key, text)
    return png(pnginfo=info)


def raw_profile() -> str:
    body = exif(6).tobytes().hex()
    return f"\nexif\n{len(body) // 2:8}\n{body}\n"


def palette(**options: object) -> bytes:
    return png(photo().quantize(32), **options)


def frames(form: str) -> bytes:
    return saved(photo(), form, save_all=True, append_images=[photo(seed=1)], duration=100)


def pages() -> bytes:
    return saved(photo(), "TIFF", save_all=True, append_images=[photo(seed=1)])


def phone() -> bytes:
    return saved(photo(), "MPO", save_all=True, append_images=[photo(seed=1)], quality=95)


def grey16() -> Image.Image:
    return Image.fromarray(deep(1)[..., 0].astype(np.uint16))


def alpha(mode: str = "RGBA") -> Image.Image:
    image = photo(mode)
    image.putalpha(photo("L", seed=2))
    return image


def tiff(image: Image.Image | None = None, **options: object) -> bytes:
    return saved(image or photo(), "TIFF", **options)


def premultiplied() -> bytes:
    data = bytearray(tiff(alpha()))
    entry = data.index(struct.pack("<HHI", 338, 3, 1))  # extra samples
    data[entry + 8] = 1
    return bytes(data)


def bmp16() -> bytes:
    five = np.asarray(photo()).astype(np.uint16) >> 3
    rows = ((five[..., 0] << 10) | (five[..., 1] << 5) | five[..., 2])[::-1].astype("<u2").tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 16, 0, len(rows), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(rows), 0, 0, 54) + header + rows


def hundred() -> bytes:
    """A PPM whose white is 100."""
    return b"P6\n%d %d\n100\n" % (WIDTH, HEIGHT) + (np.asarray(photo()) // 3).tobytes()


def bomb(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))


def tile_bomb() -> bytes:
    """A TIFF of 16x16 grey pixels in one tile of 40,000 x 40,000."""
    tags = {256: 16, 257: 16, 258: 8, 259: 5, 262: 1, 277: 1, 322: 40_000, 323: 40_000, 324: 8, 325: 99}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(200)


def damaged_checksum() -> bytes:
    data = bytearray(png())
    data[data.index(b"IEND") - 5] ^= 1
    return bytes(data)


SET_ASIDE = {
    "empty.jpg": Case(lambda: b"", "empty"),
    "text.jpg": Case(lambda: b"these are words, not pixels\n" * 20, "not an image"),
    "svg.jpg": Case(lambda: b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
    "html.jpg": Case(lambda: b"<!DOCTYPE html><html><body>404</body></html>", "not an image"),
    "pointer.jpg": Case(lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not an image"),
    "pdf.jpg": Case(lambda: b"%PDF-1.7\n" + bytes(100), "not an image"),
    "zeros.jpg": Case(lambda: bytes(5000), "not an image"),
    "video.jpg": Case(lambda: b"\0\0\0\x20ftypisom" + bytes(64), "not an image"),
    "leading-junk.jpg": Case(lambda: b"xx" + jpeg(), "not an image"),
    "first-bytes.jpg": Case(lambda: jpeg()[:20], "truncated"),
    "header-only.jpg": Case(lambda: jpeg()[: jpeg().index(b"\xff\xda")], "truncated"),
    "quarter.jpg": Case(lambda: cut(jpeg(), 0.4), "truncated"),
    "most.jpg": Case(lambda: cut(jpeg(), 0.9), "truncated"),
    "no-end.jpg": Case(lambda: jpeg()[:-2], "truncated"),
    "progressive-cut.jpg": Case(lambda: cut(jpeg(progressive=True), 0.8), "truncated"),
    "zero-tail.jpg": Case(lambda: zero_tail(jpeg()), "truncated"),
    "half.png": Case(lambda: cut(png(), 0.5), "truncated"),
    "no-iend.png": Case(lambda: png()[:-12], "truncated"),
    "zero-tail.png": Case(lambda: zero_tail(png()), "unreadable"),
    "header-only.png": Case(lambda: png()[:33], "truncated"),
    "half.bmp": Case(lambda: cut(saved(photo(), "BMP"), 0.5), "truncated"),
    "half.tif": Case(lambda: cut(tiff(), 0.5), "truncated"),
    "half.ppm": Case(lambda: cut(saved(photo(), "PPM"), 0.5), "truncated"),
    "half.gif": Case(lambda: cut(saved(photo(), "GIF"), 0.6), "truncated"),
    "half.webp": Case(lambda: cut(saved(photo(), "WEBP"), 0.5), "truncated"),
    "checksum.png": Case(damaged_checksum, "unreadable"),
    "no-palette.png": Case(lambda: raw_png(np.asarray(photo("L")), 8, 3), "unreadable"),
    "animated.gif": Case(lambda: frames("GIF"), "animated"),
    "animated.webp": Case(lambda: frames("WEBP"), "animated"),
    "animated.png": Case(lambda: frames("PNG"), "animated"),
    "pages.tif": Case(pages, "animated"),
    "twelve-bit.jpg": Case(twelve_bit, "unsupported format"),
    "jpeg-ls.jpg": Case(lambda: another_process(0xF7), "unsupported format"),
    "hierarchical.jpg": Case(lambda: another_process(0xC5), "unsupported format"),
    "no-height.jpg": Case(lambda: changed(jpeg(), b"\xff\xc0", 5, b"\0\0"), "unreadable"),
    "two-components.jpg": Case(lambda: changed(jpeg(), b"\xff\xc0", 9, b"\2"), "unsupported format"),
    "five-components.jp2": Case(
        lambda: changed(saved(photo(), "JPEG2000", no_jp2=True), b"\xff\x51", 38, b"\0\5"), "unsupported format"
    ),
    "jpeg-inside.bmp": Case(lambda: changed(saved(photo(), "BMP"), b"BM", 30, b"\4"), "unsupported format"),
    "cut.avif": Case(lambda: cut(saved(photo(), "AVIF"), 0.9), "truncated"),
    "cut.gif": Case(lambda: cut(saved(photo(), "GIF"), 0.2), "truncated"),
    "float.tif": Case(lambda: tiff(photo("F")), "unsupported format"),
    "integers.tif": Case(lambda: tiff(photo("L").convert("I")), "unsupported format"),
    "preview.tif": Case(lambda: tiff(tiffinfo={254: 1}), "unsupported format"),
    "apple.png": Case(lambda: png()[:8] + chunk(b"CgBI", bytes(4)) + png()[8:], "unsupported format"),
    "heic.jpg": Case(lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "unsupported format"),
    "jxl.jpg": Case(lambda: b"\xff\x0a" + bytes(200), "unsupported format"),
    "photoshop.jpg": Case(lambda: b"8BPS\0\1" + bytes(200), "unsupported format"),
    "postscript.jpg": Case(lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported format"),
    "icon.png": Case(lambda: saved(photo(), "ICO"), "unsupported format"),
    "bomb.png": Case(lambda: bomb(9000), "bomb"),
    "huge-bomb.png": Case(lambda: bomb(60_000), "bomb"),
    "tile-bomb.tif": Case(tile_bomb, "bomb"),
}

XMP = b"http://ns.adobe.com/xap/1.0/\0" + TURNED
TURN = "orientation in an unusual place"
KEPT = {
    "plain.jpg": Case(jpeg),
    "grey.jpg": Case(lambda: jpeg("L")),
    "progressive.jpg": Case(lambda: jpeg(progressive=True)),
    "arithmetic.jpg": Case(arithmetic),
    "restarts.jpg": Case(lambda: jpeg(restart_marker_blocks=1)),
    "444.jpg": Case(lambda: jpeg(subsampling=0)),
    "cmyk-adobe.jpg": Case(lambda: jpeg("CMYK")),
    "ycck.jpg": Case(ycck),
    "cmyk-plain.jpg": Case(lambda: without_adobe(jpeg("CMYK")), converted="CMYK without Adobe's marker"),
    "stray-bytes.jpg": Case(
        lambda: jpeg()[:20] + b"junk" + jpeg()[20:], converted="JPEG with stray bytes in its header"
    ),
    "fill-bytes.jpg": Case(lambda: jpeg()[:20] + b"\xff\xff" + jpeg()[20:]),
    "trailing-junk.jpg": Case(lambda: jpeg() + b"\xff\xda and more"),
    "motion-photo.jpg": Case(lambda: jpeg() + b"\0\0\0\x20ftypisom\xff\xda" + bytes(500)),
    "phone.jpg": Case(phone),
    "png.jpg": Case(png),
    "webp.jpg": Case(lambda: saved(photo(), "WEBP")),
    "jpeg.png": Case(jpeg),
    "1x1.jpg": Case(lambda: saved(photo().resize((1, 1)), "JPEG")),
    "1x3000.jpg": Case(lambda: saved(photo().resize((1, 3000)), "JPEG")),
    "3000x2.png": Case(lambda: png(photo().resize((3000, 2)))),
    **{f"turned-{o}.jpg": Case(lambda o=o: jpeg(exif=exif(o))) for o in range(1, 9)},
    **{f"turned-{o}.png": Case(lambda o=o: png(exif=exif(o))) for o in (2, 6)},
    **{f"turned-{o}.webp": Case(lambda o=o: saved(photo(), "WEBP", exif=exif(o))) for o in (4, 8)},
    **{f"turned-{o}.tif": Case(lambda o=o: tiff(exif=exif(o))) for o in (3, 5)},
    "turned-late.png": Case(lambda: raw_png(np.asarray(photo()), 8, 2, last=chunk(b"eXIf", exif(8).tobytes()[6:]))),
    "turned-9.jpg": Case(lambda: jpeg(exif=exif(9))),
    "big-endian.jpg": Case(lambda: with_app1(exif_block(6, ">"))),
    "damaged-exif.jpg": Case(lambda: with_app1(b"Exif\0\0II*\0\x08\0\0\0\xff\xff")),
    "junk-exif.webp": Case(lambda: saved(photo(), "WEBP", exif=b"Exif\0\0XX")),
    "xmp.jpg": Case(lambda: with_app1(XMP), converted="orientation in XMP"),
    "xmp-and-exif.jpg": Case(lambda: with_app1(XMP, exif_block(3))),
    "xmp.webp": Case(lambda: saved(photo(), "WEBP", xmp=TURNED, lossless=True), converted="orientation in XMP"),
    "xmp.png": Case(lambda: with_text("XML:com.adobe.xmp", TURNED.decode()), converted="orientation in XMP"),
    "raw-profile.png": Case(lambda: with_text("Raw profile type exif", raw_profile()), converted=TURN),
    "two-exif.jpg": Case(lambda: with_app1(exif_block(6), exif_block(3)), converted=TURN),
    "two-exif.png": Case(
        lambda: raw_png(np.asarray(photo()), 8, 2, *(chunk(b"eXIf", exif_block(o)[6:]) for o in (6, 3))),
        converted=TURN,
    ),
    "long-exif.jpg": Case(lambda: with_app1(exif_block(6, ">", kind=4)), converted=TURN),
    "byte-exif.jpg": Case(lambda: with_app1(exif_block(6, kind=1)), converted=TURN),
    "loose-exif.jpg": Case(lambda: with_app1(exif_block(6, make_at=9999)), converted=TURN),
    "1-bit.png": Case(lambda: png(photo("1"))),
    "alpha.png": Case(lambda: png(alpha())),
    "grey-alpha.png": Case(lambda: png(alpha("LA"))),
    "palette.png": Case(palette),
    "palette-alpha.png": Case(lambda: palette(transparency=bytes(range(0, 256, 8)))),
    "palette-key.png": Case(lambda: palette(transparency=3)),
    "key.png": Case(lambda: png(transparency=photo().getpixel((0, 0)))),
    "16-bit-grey.png": Case(lambda: png(grey16())),
    "16-bit-rgb.png": Case(lambda: raw_png(deep(3), 16, 2)),
    "gamma.png": Case(lambda: raw_png(np.asarray(photo()), 8, 2, chunk(b"gAMA", struct.pack(">I", 22727)))),
    "critical.png": Case(
        lambda: raw_png(np.asarray(photo()), 8, 2, chunk(b"ABCD", b"xx")),
        converted="PNG with an unknown ABCD chunk",
    ),
    "trailing-junk.png": Case(lambda: png() + b"junk"),
    "one-frame.png": Case(lambda: png(save_all=True)),
    "16-bit-alpha.png": Case(lambda: raw_png(np.dstack([deep(3), deep(3)[..., :1]]), 16, 6)),
    "alpha.webp": Case(lambda: saved(alpha(), "WEBP", lossless=True)),
    "plain.bmp": Case(lambda: saved(photo(), "BMP")),
    "1-bit.bmp": Case(lambda: saved(photo("1"), "BMP")),
    "16-bit.bmp": Case(bmp16, converted="BMP with compression or 16 bits"),
    "plain.ppm": Case(lambda: saved(photo(), "PPM")),
    "hundred.ppm": Case(hundred, converted="PNM that is not plain 8 or 16 bits"),
    "text.ppm": Case(
        lambda: b"P3 2 2 255 " + b" ".join(b"%d" % value for value in range(0, 240, 20)),
        converted="PNM that is not plain 8 or 16 bits",
    ),
    "plain.tif": Case(tiff),
    "16-bit.tif": Case(lambda: tiff(grey16())),
    "cmyk.tif": Case(lambda: tiff(photo("CMYK"))),
    "1-bit.tif": Case(lambda: tiff(photo("1")), converted="TIFF of mode 1 with 1 bits"),
    "fax.tif": Case(lambda: tiff(photo("1"), compression="group4"), converted="TIFF with group4 compression"),
    "grey-alpha.tif": Case(lambda: tiff(alpha("LA")), converted="TIFF of mode LA with 8 bits"),
    "premultiplied.tif": Case(premultiplied, converted="TIFF with premultiplied alpha"),
    "lzma.tif": Case(lambda: tiff(compression="lzma"), converted="TIFF with lzma compression"),
    "jpeg.tif": Case(lambda: tiff(compression="jpeg")),
    "zstd.tif": Case(lambda: tiff(compression="zstd")),
    "xmp.tif": Case(lambda: tiff(tiffinfo={700: TURNED}), converted="orientation in XMP"),
    "gif.jpg": Case(lambda: saved(photo(), "GIF"), converted="GIF"),
    "jp2.jpg": Case(lambda: saved(photo(), "JPEG2000"), converted="JPEG 2000"),
    "avif.jpg": Case(lambda: saved(photo(), "AVIF", exif=exif(6)), converted="AVIF"),
}
CASES = SET_ASIDE | KEPT


# --------------------------------------------------------------------------------------- what is expected


@pytest.fixture(scope="module")
def inputs() -> dict[str, bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow deprecates naming a mode
        return {name: case.make() for name, case in CASES.items()}


@pytest.fixture(scope="module")
def prepared(inputs) -> dict[str, Prepared]:
    return {name: prepare_image(inputs[name], PixelOptions()) for name in KEPT}


@pytest.fixture(scope="module")
def decoded(prepared) -> dict[str, Pixels]:
    """Every kept image as the stream's graph decodes it: a window as large as the manifest says it is."""
    return dict(stream_decode({name: (image.data, image.facts) for name, image in prepared.items()}))


def stream_decode(images: dict[str, tuple[bytes, object]]) -> Iterator[tuple[str, Pixels]]:
    from nvidia.dali import Pipeline, fn, types

    encoded = [np.frombuffer(data, np.uint8) for data, _ in images.values()]
    shapes = [np.array([facts.height, facts.width], np.int32) for _, facts in images.values()]  # type: ignore[attr-defined]
    pipeline = Pipeline(batch_size=len(encoded), num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        data, start, shape = fn.external_source(
            source=lambda: (encoded, [np.zeros(2, np.int32)] * len(encoded), shapes),
            num_outputs=3,
            dtype=[types.UINT8, types.INT32, types.INT32],
            ndim=1,
        )
        window = fn.decoders.image_slice(data, start=start, shape=shape, axes=[0, 1], output_type=types.RGB)
        pipeline.set_outputs(window)
    pipeline.build()
    (pixels,) = pipeline.run()
    for i, name in enumerate(images):
        yield name, np.array(pixels[i])


def seen_by_a_person(data: bytes) -> Pixels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        if image.mode.startswith("I"):
            return np.asarray(Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB"))
        with suppress(SyntaxError):  # where there is no EXIF, whatever it says
            image = ImageOps.exif_transpose(image)
        return np.asarray(image.convert("RGB"))


def test_the_table_is_as_long_as_was_promised():
    assert len(SET_ASIDE) >= 20
    assert len(KEPT) >= 20


@pytest.mark.parametrize("name", SET_ASIDE)
def test_set_aside(inputs, name):
    with pytest.raises(BadImageError) as caught:
        prepare_image(inputs[name], PixelOptions())
    assert str(caught.value).split(":")[0] == SET_ASIDE[name].kind
    assert "\n" not in str(caught.value)
    for resize in (None, 20):
        for decode in (False, True):
            with suppress(BadImageError):  # no other error, and no warning, whatever is asked for
                prepare_image(inputs[name], PixelOptions(resize_px=resize, decode=decode))


@pytest.mark.parametrize("name", KEPT)
def test_kept(inputs, prepared, decoded, name):
    image = prepared[name]
    assert image.converted == KEPT[name].converted
    if image.converted is None:
        assert image.data is inputs[name]
    else:
        assert image.facts.format == "png"
    expected = seen_by_a_person(inputs[name])
    assert decoded[name].shape == expected.shape == (image.facts.height, image.facts.width, 3)
    assert np.abs(decoded[name].astype(int) - expected.astype(int)).mean() <= 1


def test_the_stream_s_own_check_of_headers_finds_nothing_wrong(prepared):
    from coma.pipeline.decode import HeaderCheck

    images = list(prepared.values())
    faults = HeaderCheck(len(images)).faults(
        [np.frombuffer(image.data, np.uint8) for image in images],
        np.array([image.facts.width for image in images]),
        np.array([image.facts.height for image in images]),
    )
    assert not faults


@pytest.mark.parametrize("name", KEPT)
def test_the_header_alone_tells_the_same(inputs, prepared, name):
    full, header = prepared[name], prepare_image(inputs[name], PixelOptions(decode=False))
    assert (header.data, header.facts, header.converted) == (full.data, full.facts, full.converted)


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_be_converted_must_need_no_conversion(inputs, prepared, name):
    if KEPT[name].converted is None:
        assert check_image(inputs[name]) == prepared[name].facts
    else:
        with pytest.raises(BadImageError, match=r"^unsupported format: "):
            check_image(inputs[name])
        assert check_image(prepared[name].data) == prepared[name].facts


@pytest.mark.parametrize("name", KEPT)
def test_resized_they_are_upright_jpegs(inputs, name):
    expected = Image.fromarray(seen_by_a_person(inputs[name])).convert("L")  # JPEG halves the chroma
    image = prepare_image(inputs[name], PixelOptions(resize_px=22, quality=95))
    got = Image.open(io.BytesIO(image.data))
    assert image.facts.format == "jpeg"
    assert got.size == (image.facts.width, image.facts.height)
    if min(expected.size) > 22:
        assert (image.converted, min(got.size)) == ("resized", 22)
        expected = expected.resize(got.size, Image.Resampling.LANCZOS)
    difference = np.asarray(got.convert("L"), dtype=int) - np.asarray(expected, dtype=int)
    assert np.abs(difference).mean() < 4  # a wrong turn gives more than 20


def test_a_folder_of_them_all_adds_up(inputs, prepared, tmp_path):
    source = tmp_path / "odd"
    for i, (name, data) in enumerate(inputs.items()):
        path = source / ("a" if i % 2 else "b") / name.replace("/", "-")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    summary = shard(source, tmp_path / "out", ShardOptions(workers=1))
    assert summary.found == len(CASES)
    assert summary.kept == len(KEPT)
    assert summary.set_aside == len(SET_ASIDE)
    assert summary.found == summary.kept + summary.set_aside
    quarantine = pq.read_table(tmp_path / "out/quarantine.parquet").to_pylist()
    kinds = {row["path"].split("/")[-1]: row["reason"].split(":")[0] for row in quarantine}
    assert kinds == {name: case.kind for name, case in SET_ASIDE.items()}
    rows = pq.read_table(tmp_path / "out/train/manifest.parquet").to_pylist()
    assert {row["source"].split("/")[-1] for row in rows} == set(KEPT)
    for row in rows:
        name = row["source"].split("/")[-1]
        with (tmp_path / "out/train" / row["shard"]).open("rb") as tar:
            tar.seek(row["offset"])
            assert tar.read(row["size"]) == prepared[name].data
        assert (row["width"], row["height"]) == (prepared[name].facts.width, prepared[name].facts.height)
