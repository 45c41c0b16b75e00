"""Samples of any channels and depth: every window equals the same window of the array that was written."""

import io
import itertools
import lzma
import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest
import tifffile
from arrays import DTYPES
from arrays import drawn_array as array
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiffs import tiff_bytes

from coma.shards.images.arrays import array_facts, read_array, read_window
from coma.shards.images.formats import BadImageError
from coma.shards.images.options import PixelOptions
from coma.shards.images.prepare_array import prepare_array

WINDOWS = ((0, 0, 61, 83), (0, 0, 1, 1), (60, 82, 1, 1), (17, 5, 30, 40), (33, 63, 20, 20), (0, 16, 16, 1))


def assert_windows(data: bytes, whole: np.ndarray, kind: str = "tiff") -> None:
    facts = array_facts(data)
    assert (facts.height, facts.width, facts.channels) == whole.shape
    assert (facts.dtype, facts.format, facts.kept) == (whole.dtype.name, kind, True)
    for top, left, height, width in WINDOWS:
        pixels = read_window(data, kind, top, left, height, width)
        assert pixels.dtype == whole.dtype
        assert pixels.dtype.isnative
        assert np.array_equal(pixels, whole[top : top + height, left : left + width])
    assert np.array_equal(read_array(data, array_facts(data, whole.shape[2])), whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"tile": (16, 32)}, {"rowsperstrip": 7}, {"bigtiff": True}], ids=str)
def test_windows_of_tiffs_as_tifffile_writes_them(options, order, dtype):
    for channels, planar, packed in itertools.product((1, 3, 13), (False, True), ("none", "zlib", "predictor")):
        whole = array(channels, dtype)
        if (packed == "predictor" and dtype == "float32") or (planar and channels == 1):
            continue  # tifffile alone does not write the one, and takes the other for two pictures
        file = io.BytesIO()
        tifffile.imwrite(
            file,
            np.moveaxis(whole, 2, 0) if planar else whole[..., 0] if channels == 1 else whole,
            byteorder=order,
            photometric="minisblack",
            planarconfig="separate" if planar else "contig" if channels > 1 else None,
            compression=None if packed == "none" else "zlib",
            predictor=packed == "predictor",
            **options,
        )
        assert_windows(file.getvalue(), whole)


def lzw(block: np.ndarray) -> bytes:
    """Have Pillow compress the bytes of a block: LZW knows of no rows."""
    return by_pillow(block, "tiff_lzw")


def packbits(block: np.ndarray) -> bytes:
    return by_pillow(block, "packbits")


def by_pillow(block: np.ndarray, compression: str) -> bytes:
    raw, file = np.frombuffer(block.tobytes(), np.uint8), io.BytesIO()
    width = next(side for side in range(min(len(raw), 4096), 0, -1) if len(raw) % side == 0)
    image = Image.fromarray(raw.reshape(-1, width))
    image.save(file, "TIFF", compression=compression, tiffinfo={278: image.height})
    with tifffile.TiffFile(io.BytesIO(file.getvalue())) as tiff:
        (offset,), (size,) = tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts
    return file.getvalue()[offset : offset + size]


def zstd(block: np.ndarray) -> bytes:
    return pa.compress(block.tobytes(), codec="zstd", asbytes=True)


def by_lzma(block: np.ndarray) -> bytes:
    return lzma.compress(block.tobytes())


@pytest.mark.parametrize(
    ("compression", "pack"), [(5, lzw), (32773, packbits), (50000, zstd), (34925, by_lzma), (32946, None)]
)
def test_windows_of_tiffs_with_rarer_compressions(compression, pack):
    for dtype, (planes, tile), order in itertools.product(("uint16", "float32"), ((1, None), (2, 32)), "<>"):
        whole = array(5, dtype)
        packer = pack or (lambda block: zlib.compress(block.tobytes()))
        data = tiff_bytes(whole, 1, planes, compression=compression, tile=tile, order=order, pack=packer, rows=20)
        assert_windows(data, whole)


def horizontal(block: np.ndarray) -> bytes:
    """Predictor 2, as the TIFF specification has it, on the bits of any type."""
    bits = block.view(f"{block.dtype.byteorder}u{block.dtype.itemsize}")
    native = bits.astype(bits.dtype.newbyteorder("="))
    native[:, 1:] -= native[:, :-1].copy()
    return zlib.compress(native.astype(bits.dtype).tobytes())


def floating(block: np.ndarray) -> bytes:
    """Predictor 3, as Adobe's technical note has it."""
    rows, width, channels = block.shape
    by_byte = block.astype(">f4").view(np.uint8).reshape(rows, width * channels, 4)
    planes = np.moveaxis(by_byte, 2, 1).reshape(rows, -1)
    differences = planes.copy()
    differences[:, channels:] -= planes[:, :-channels]
    return zlib.compress(differences.tobytes())


@pytest.mark.parametrize(("predictor", "pack"), [(2, horizontal), (3, floating)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_predictors_of_floats(predictor, pack, order):
    for channels, (planes, tile) in itertools.product((1, 4), ((1, None), (2, 32), (1, 16))):
        whole = array(channels, "float32")
        data = tiff_bytes(
            whole, 1, planes, compression=8, tile=tile, order=order, pack=pack, rows=20, tags={317: predictor}
        )
        assert_windows(data, whole)


def test_the_full_picture_of_a_geotiff_with_overviews_is_read():
    whole, file = array(13, "uint16", 256, 192), io.BytesIO()
    with tifffile.TiffWriter(file) as tiff:  # as GDAL writes them: reduced copies are further pages
        options = {"tile": (64, 64), "photometric": "minisblack", "planarconfig": "contig", "compression": "zlib"}
        tiff.write(whole, **options)
        tiff.write(whole[::2, ::2], subfiletype=1, **options)
        tiff.write(whole[::4, ::4], subfiletype=1, **options)
    below = io.BytesIO()
    with tifffile.TiffWriter(below, bigtiff=True) as tiff:  # or directories below the first
        tiff.write(whole, subifds=2, **options)
        tiff.write(whole[::2, ::2], subfiletype=1, **options)
        tiff.write(whole[::4, ::4], subfiletype=1, **options)
    for data in (file.getvalue(), below.getvalue()):
        assert array_facts(data, 13).kept
        assert np.array_equal(read_window(data, "tiff", 0, 0, 256, 192), whole)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_windows_of_pngs(mode):
    channels = {"I;16": 1}.get(mode, len(mode))
    whole, file = array(channels, "uint16" if mode == "I;16" else "uint8"), io.BytesIO()
    Image.fromarray(whole[..., 0] if channels == 1 else whole).save(file, "PNG")
    assert_windows(file.getvalue(), whole, "png")


def sixteen_bit_png(whole: np.ndarray, filters: np.ndarray, adam7: bool = False) -> bytes:
    """A PNG of 16 bits whose rows have these filters, by the formulas of the specification, pixel by pixel."""
    height, width, channels = whole.shape
    size = 2 * channels
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    raw = bytearray()
    for x0, y0, right, down in steps if adam7 else ((0, 0, 1, 1),):
        part = whole[y0::down, x0::right].astype(">u2")
        if not part.size:
            continue
        lines = [list(line.tobytes()) for line in part]
        before = [0] * len(lines[0])
        for number, line in enumerate(lines):
            kind = int(filters[number % len(filters)])
            raw.append(kind)
            for i, byte in enumerate(line):
                a = line[i - size] if i >= size else 0
                b, c = before[i], before[i - size] if i >= size else 0
                p = a + b - c
                paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
                raw.append((byte - (0, a, b, (a + b) // 2, paeth)[kind]) % 256)
            before = line
    colour = {2: 4, 3: 2, 4: 6}[channels]

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, int(adam7))
    pixels = zlib.compress(bytes(raw))
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", pixels[:100]), chunk(b"IDAT", pixels[100:]), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("adam7", [False, True])
def test_colours_of_16_bits_are_read_without_loss(channels, adam7):
    whole = array(channels, "uint16", 23, 19)
    data = sixteen_bit_png(whole, np.array([0, 1, 2, 3, 4, 4, 3, 1]), adam7)
    with Image.open(io.BytesIO(data)) as image:  # Pillow agrees, in the upper eight bits
        upper = np.asarray(image)
        assert np.array_equal(upper if channels > 2 else upper[..., [0, 3]], whole >> 8)
    facts = array_facts(data, channels)
    assert (facts.kept, facts.why, facts.dtype) == (False, "PNG of 16 bits in colour", "uint16")
    assert np.array_equal(read_array(data, facts), whole)


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.parametrize("dtype", DTYPES)
def test_windows_of_npys(dtype):
    for channels in (1, 3, 13):
        whole = array(channels, dtype)
        assert_windows(npy(whole), whole, "npy")
    assert_windows(npy(array(1, dtype)[..., 0]), array(1, dtype), "npy")


def test_other_orders_of_an_npy_are_read_whole():
    whole = array(5, "int16")
    for values, why in (
        (np.moveaxis(whole, 2, 0), ".npy of shape [C, H, W]"),
        (np.asfortranarray(whole), ".npy in Fortran order"),
        (whole.astype(">i2"), ".npy of another byte order or alignment"),
    ):
        data = npy(np.ascontiguousarray(values) if "shape" in why else values)
        facts = array_facts(data, 5)
        assert (facts.kept, facts.why) == (False, why)
        assert (facts.height, facts.width, facts.channels) == whole.shape
        assert np.array_equal(read_array(data, facts), whole)


def test_pictures_that_are_the_channels_are_read_as_such():
    """As microscopes write them; a stack of another length is no sample of so many channels."""
    whole = array(4, "uint16")
    planes = [whole[..., channel] for channel in range(4)]
    data = tiff_bytes(planes[0], 1, compression=8, more=[(plane, 0) for plane in planes[1:]])
    facts = array_facts(data, 4)
    assert (facts.channels, facts.kept, facts.why) == (4, False, "TIFF of a picture for each channel")
    assert np.array_equal(read_array(data, facts), whole)
    for channels in (1, 3, 5):
        with pytest.raises(BadImageError, match=r"^animated: a TIFF of several pictures, which are not one for each"):
            array_facts(data, channels)


def test_an_npy_whose_axes_may_be_either_is_not_guessed():
    with pytest.raises(BadImageError, match=r"^ambiguous: .*\[3, 8, 3\] may be \[C, H, W\] or \[H, W, C\]"):
        array_facts(npy(np.zeros((3, 8, 3), np.uint8)), 3)


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (1, 8), (8, 1), (1, 1), (1, 1, 1)])
def test_sides_of_an_npy_in_grey_are_no_channels(shape):
    whole = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    for channels in (1, 3):
        facts = array_facts(npy(whole), channels)
        assert (facts.height, facts.width, facts.channels, facts.kept) == (*shape[:2], 1, True)
        assert np.array_equal(read_array(npy(whole), facts), whole.reshape(*shape[:2], 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation):
    """Facts, whole array and the orientation that Pillow applies agree."""
    whole = array(1, "uint8", 20, 31)
    data = tiff_bytes(whole, 1, tags={274: orientation})
    facts = array_facts(data, 1)
    with Image.open(io.BytesIO(data)) as image:
        from PIL import ImageOps

        shown = np.asarray(ImageOps.exif_transpose(image))
    assert (facts.height, facts.width) == shown.shape
    assert facts.kept == (orientation == 1)
    assert np.array_equal(read_array(data, facts)[..., 0], shown)
    text, file = PngInfo(), io.BytesIO()
    text.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="{orientation}"/>')
    Image.fromarray(whole[..., 0]).save(file, "PNG", pnginfo=text)
    prepared = prepare_array(file.getvalue(), PixelOptions(channels=1))
    assert (prepared.facts.height, prepared.facts.width) == shown.shape
    assert prepared.converted == (None if orientation == 1 else "orientation")
    assert np.array_equal(prepared.array[..., 0], shown)


def two_pictures() -> bytes:
    first, second = (Image.fromarray(array(3, "uint8", seed=seed)) for seed in range(2))
    file = io.BytesIO()
    first.save(file, "PNG", save_all=True, append_images=[second])
    return file.getvalue()


def _cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_cut(npy(array(3, "uint16"))), "truncated: it ends"),
        (npy(array(3, "uint16"))[:40], "unreadable: its header"),
        (npy(np.array([{}, {}])), "unsupported format: .npy of Python objects"),
        (npy(np.zeros((2, 3, 4, 5))), r"unsupported format: .npy of shape \[2, 3, 4, 5\]"),
        (npy(np.zeros((61, 83))).replace(b"(61, 83)", b"(-1, 83)"), r"unsupported format: .npy of shape \[-1, 83\]"),
        (npy(np.zeros((1, 83))).replace(b"(1, 83), ", b"(True,83)"), r"unsupported format: .npy of shape \[True, 83\]"),
        (two_pictures(), "animated: a PNG of several pictures; save one picture a file"),
        (_cut(tiff_bytes(array(3, "uint16"), 1, compression=8)), "truncated"),
        (tiff_bytes(array(3, "uint16"), 1, compression=8, pack=lambda block: b"\x78\x9c" + bytes(9)), "unreadable"),
        (
            tiff_bytes(array(3, "uint16"), 1, compression=8, pack=lambda block: zlib.compress(block.tobytes()[:100])),
            "truncated: a strip or tile holds 100 bytes",
        ),
        (tiff_bytes(array(1, "uint8"), 1, compression=34887), r"unsupported format: .* 34887 \(LERC\); write it with"),
        (tiff_bytes(array(1, "uint8"), 3), "unsupported format: TIFF whose values are not plain"),
        (tiff_bytes(array(1, "uint16"), 1, tags={266: 2}), "unsupported format: TIFF whose bits are in reversed"),
        (tiff_bytes(array(2, "uint16"), 1, more=[(array(2, "uint16"), 0)]), "animated: a TIFF of several pictures"),
        (b"II*\0" + bytes(40), "truncated: the header is cut"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "unsupported format: JPEG, where --channels reads TIFF, PNG and .npy"),
        (b"<html>" + bytes(40), "not an image: an HTML page"),
        (bytes(40), "not an image: nothing but zeros"),
    ],
)
def test_reasons_of_what_is_not_read(data, reason):
    with pytest.raises(BadImageError, match=f"^{reason}"):
        read_array(data, array_facts(data, 3))


def test_a_window_outside_of_the_picture_is_refused():
    for data, kind in ((npy(array(1, "uint16")), "npy"), (tiff_bytes(array(1, "uint16"), 1), "tiff")):
        for window in ((-1, 0, 3, 3), (0, 80, 3, 9), (60, 0, 2, 3), (0, 0, 0, 3)):
            with pytest.raises(BadImageError, match="has no"):
                read_window(data, kind, *window)


def test_a_deflated_block_cannot_blow_up():
    bomb = zlib.compress(bytes(2**26))
    data = tiff_bytes(array(1, "uint8", 8, 8), 1, compression=8, pack=lambda block: bomb)
    assert read_window(data, "tiff", 0, 0, 8, 8).shape == (8, 8, 1)
    wide = tiff_bytes(array(1, "uint8", 8, 8), 1, tile=16)
    wide = wide.replace(struct.pack("<HHII", 322, 4, 1, 16), struct.pack("<HHII", 322, 4, 1, 2**30))
    with pytest.raises(BadImageError, match=r"^bomb: a tile of"):
        array_facts(wide)


def test_damage_of_any_byte_is_no_other_error():
    generator = np.random.default_rng(0)
    whole, file = array(3, "uint16", 20, 23), io.BytesIO()
    Image.fromarray(array(3, "uint8", 20, 23)).save(file, "PNG")
    sound = [
        *(npy(whole), file.getvalue(), sixteen_bit_png(whole, np.arange(5)), tiff_bytes(whole, 1, big=True)),
        tiff_bytes(whole, 1, 2, compression=8, tile=16),
        tiff_bytes(whole, 1, compression=8, pack=horizontal, tags={317: 2}),
        tiff_bytes(whole, 1, compression=50000, pack=zstd, rows=7),
        tiff_bytes(whole[..., 0], 1, more=[(whole[..., 1], 0), (whole[..., 2], 0)]),
    ]
    read = 0
    for number in range(1200):
        data = bytearray(sound[number % len(sound)])
        for at in generator.integers(0, min(len(data), 400 if number % 3 else len(data)), generator.integers(1, 4)):
            data[at] = generator.integers(256)
        damaged = bytes(data[: generator.integers(len(data))] if number % 7 == 0 else data)
        try:
            facts = array_facts(damaged, 3)
            if facts.pixels < 2**20:
                read_array(damaged, facts)
                read_window(damaged, facts.format, 2, 3, 9, 9)
                read += 1
        except BadImageError:
            pass
    assert 100 < read < 1100


@pytest.mark.parametrize(
    ("max_pixels", "reason"),
    [
        (9_999, "bomb: 100x100 pixels, the limit is 9999"),
        (20_000, "bomb: 260,000 bytes of pixels, the limit is 80,000"),
    ],
)
def test_a_sample_that_takes_too_much_memory_is_set_aside(max_pixels, reason):
    data = npy(np.zeros((100, 100, 13), np.uint16))
    with pytest.raises(BadImageError, match=f"^{reason}"):
        prepare_array(data, PixelOptions(channels=13, max_pixels=max_pixels))
    assert prepare_array(data, PixelOptions(channels=13, max_pixels=65_000)).data == data
