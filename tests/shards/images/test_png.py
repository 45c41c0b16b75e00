"""PNGs with more text than PIL reads are kept, at no more memory than PIL's own limit."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import MAX_TEXT_CHUNK, MAX_TEXT_MEMORY

from coma.shards.images.png import without_long_texts
from coma.shards.images.prepare import BadImageError, PixelOptions, check_image, prepare_image

MIB = 2**20
PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
TURNED = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG with chunks before and after the pixels."""
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    data = file.getvalue()
    first, last = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    return data[:first] + before + data[first:last] + after + data[last:]


def text(length: int, key: bytes = b"workflow") -> bytes:
    return chunk(b"tEXt", key + b"\0" + b"x" * length)


def deflated(name: bytes, length: int, key: bytes = b"workflow", begin: bytes = b"") -> bytes:
    """A compressed text or profile that has so many bytes once it is inflated."""
    middle = {b"zTXt": b"\0\0", b"iCCP": b"\0\0", b"iTXt": b"\0\1\0\0\0"}[name]
    return chunk(name, key + middle + zlib.compress(begin + b" " * (length - len(begin))))


LONG = "PNG with a longer text or profile than PIL reads"
KEPT = {
    "zTXt": (png(deflated(b"zTXt", 3 * MIB)), LONG),
    "zTXt after the pixels": (png(after=deflated(b"zTXt", 3 * MIB)), LONG),
    "iTXt": (png(deflated(b"iTXt", 3 * MIB)), LONG),
    "iCCP": (png(deflated(b"iCCP", 3 * MIB)), LONG),
    "many texts": (png(b"".join(text(MIB, b"%d" % i) for i in range(MAX_TEXT_MEMORY // MIB + 1))), LONG),
    "many compressed texts": (
        png(b"".join(deflated(b"zTXt", MIB, b"%d" % i) for i in range(MAX_TEXT_MEMORY // MIB + 1))),
        LONG,
    ),
    "as long as PIL reads": (png(deflated(b"zTXt", MAX_TEXT_CHUNK)), None),
    "a long plain text": (png(text(9 * MIB)), None),
    "thousands of texts": (png(b"".join(text(1, b"%d" % i) for i in range(3000))), None),
    "a text that is no zlib stream": (png(chunk(b"zTXt", b"k\0\0junk")), None),
    "texts without their parts": (png(chunk(b"zTXt", b"k") + chunk(b"iTXt", b"k\0") + chunk(b"iCCP", b"k\0\0")), None),
    "a long private chunk": (png(chunk(b"prVt", bytes(9 * MIB))), "PNG whose prVt chunk has more than 8 MB"),
    "a long iTXt": (
        png(chunk(b"iTXt", b"k\0\0\0\0\0" + b"x" * 9 * MIB)),
        "PNG whose iTXt chunk has more than 8 MB",
    ),
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("decode", [True, False])
def test_text_is_no_reason_to_set_a_png_aside(name, decode):
    data, converted = KEPT[name]
    prepared = prepare_image(data, PixelOptions(decode=decode))
    assert prepared.converted == converted
    assert (prepared.data is data) == (converted is None)
    with Image.open(io.BytesIO(prepared.data)) as picture:  # as webdataset, timm and others read the shard
        assert (np.asarray(picture) == PIXELS).all()


@pytest.mark.parametrize("name", KEPT)
def test_the_stream_decodes_what_is_kept(name):
    from nvidia.dali import Pipeline, fn, types

    encoded = np.frombuffer(prepare_image(KEPT[name][0], PixelOptions()).data, np.uint8)
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        data = fn.external_source(source=lambda: [encoded], dtype=types.UINT8, ndim=1)
        pipeline.set_outputs(fn.decoders.image(data, output_type=types.RGB))
    pipeline.build()
    assert (np.array(pipeline.run()[0][0]) == PIXELS).all()


def test_an_orientation_in_a_text_that_pil_reads_still_counts():
    xmp = deflated(b"iTXt", 1000, b"XML:com.adobe.xmp", TURNED)
    prepared = prepare_image(png(xmp + deflated(b"zTXt", 3 * MIB)), PixelOptions())
    assert (prepared.facts.width, prepared.facts.height) == (30, 40)


def test_a_text_that_is_a_bomb_takes_no_memory():
    data = png(deflated(b"zTXt", 100 * MIB) + deflated(b"iTXt", 100 * MIB), deflated(b"zTXt", 100 * MIB))
    tracemalloc.start()
    prepare_image(data, PixelOptions())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * MIB


@pytest.mark.parametrize("part", [0.005, 0.5, 0.99])
def test_a_cut_png_with_much_text_is_truncated(part):
    data = png(deflated(b"zTXt", 3 * MIB))
    with pytest.raises(BadImageError, match=r"^truncated: "):
        check_image(data[: int(len(data) * part)])


def test_other_chunks_and_damage_are_left_alone():
    for data in (png(), png()[:100], b"\x89PNG\r\n\x1a\n", png(chunk(b"eXIf", b"MM"))):
        assert without_long_texts(data) is data
