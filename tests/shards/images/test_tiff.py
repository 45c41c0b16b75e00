"""TIFFs of many kinds: what is kept is shown as it is by the real stream, what is not is said to be what it is."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from tiffs import tiff_bytes

from coma.pipeline import MEAN, STD, Stream
from coma.shards.images.prepare import BadImageError, PixelOptions, check_image, prepare_image
from coma.shards.images.prepare_array import prepare_array
from coma.shards.manifest.quarantine import reason_kind
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard

SIDE = 64
_coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8))
RGB = np.asarray(_coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
RGB16 = RGB.astype(np.uint16) * 257
GREY, GREY16 = RGB[..., 0], RGB16[..., 0]


def with_more(pixels, channels):
    """`pixels` and as many further channels that are half of the brightest."""
    half = np.full((SIDE, SIDE, channels), np.iinfo(pixels.dtype).max // 2, pixels.dtype)
    return np.concatenate([pixels if pixels.ndim == 3 else pixels[..., None], half], axis=2)


def inks(pixels):
    brightest = np.iinfo(pixels.dtype).max
    return np.concatenate([brightest - pixels, np.zeros_like(pixels[..., :1])], axis=2)


HALF = [(RGB[::2, ::2], 1), (RGB[::4, ::4], 1)]
KEPT = {
    **{
        f"rgb of {8 * pixels.itemsize} bits{', planes' * (planes - 1)}, {order} {compression} {tile}": tiff_bytes(
            pixels, planes=planes, order=order, compression=compression, tile=tile
        )
        for pixels in (RGB, RGB16)
        for planes in (1, 2)
        for order in "<>"
        for compression in (1, 8)
        for tile in (None, 16, 48)
    },
    **{
        f"rgb and {extra} of {8 * pixels.itemsize} bits{', planes' * (planes - 1)}, {compression}": tiff_bytes(
            with_more(pixels, 1), planes=planes, extra=[extra], compression=compression
        )
        for pixels in (RGB, RGB16)
        for planes in (1, 2)
        for compression in (1, 8)
        for extra in (0, 2)
    },
    "rgb and 3 more": tiff_bytes(with_more(RGB, 3)),
    "rgb and a fourth without a name": tiff_bytes(with_more(RGB, 1), extra=[]),
    "rgb and 2 more, planes of 16 bits": tiff_bytes(with_more(RGB16, 2), planes=2),
    "rgb and 10 more, planes": tiff_bytes(with_more(RGB, 10), planes=2),
    "cmyk": tiff_bytes(inks(RGB), 5),
    "cmyk, planes of 16 bits": tiff_bytes(inks(RGB16), 5, planes=2),
    "BigTIFF": tiff_bytes(RGB, big=True),
    "BigTIFF, planes of 16 bits": tiff_bytes(RGB16, planes=2, big=True),
    "reduced copies": tiff_bytes(RGB, more=HALF),
    "reduced copies, tiles": tiff_bytes(RGB, more=HALF, tile=16, compression=8),
    "reduced copies, BigTIFF": tiff_bytes(RGB, more=HALF, big=True),
    "a mask": tiff_bytes(RGB, more=[(GREY, 4)]),
    "a reduced mask": tiff_bytes(RGB, more=[(GREY, 4), (GREY[::2, ::2], 5)]),
    "a reduced copy as older programs mark it": tiff_bytes(RGB, more=[(RGB[::2, ::2], 0)], tags={255: 2}),
}
GREY_KEPT = {
    "grey": tiff_bytes(GREY, 1),
    "grey, zero is white": tiff_bytes(255 - GREY, 0),
    "grey of 16 bits": tiff_bytes(GREY16, 1),
    "grey of 16 bits, big-endian": tiff_bytes(GREY16, 1, order=">", compression=8),
    **{
        f"grey and {extra}{', planes' * (planes - 1)}": tiff_bytes(with_more(GREY, 1), 1, planes=planes, extra=[extra])
        for planes in (1, 2)
        for extra in (0, 2)
    },
}


SPECIAL = "which has no agreed brightness"
SET_ASIDE = {
    **{
        f"{channels} of {8 * pixels.itemsize} bits{', planes' * (planes - 1)}, {extra}": (
            tiff_bytes(with_more(pixels, channels - 1), 1, planes=planes, extra=extra),
            f"TIFF of {channels} channels of {8 * pixels.itemsize} bits" + ", not marked as RGB" * (channels in (3, 4)),
        )
        for channels in (3, 4, 5, 13)
        for pixels in (GREY, GREY16)
        for planes in (1, 2)
        for extra in (None, [])
    },
    "13 in a BigTIFF": (tiff_bytes(with_more(GREY16, 12), 1, big=True), "TIFF of 13 channels of 16 bits"),
    "13 in order": (tiff_bytes(with_more(GREY16, 12), 1, order=">"), "TIFF of 13 channels of 16 bits"),
    "2 of 16 bits": (tiff_bytes(with_more(GREY16, 1), 1, extra=[2]), "TIFF of 2 channels of 16 bits"),
    "rgb and 2 of 16 bits": (tiff_bytes(with_more(RGB16, 2)), "TIFF of 5 channels of 16 bits, RGB"),
    "rgb and 10": (tiff_bytes(with_more(RGB, 10)), "TIFF of 13 channels of 8 bits, RGB"),
    "a plane without a name": (
        tiff_bytes(with_more(RGB, 1), planes=2, extra=[]),
        "TIFF of 4 channels of 8 bits, RGB, without ExtraSamples",
    ),
    "cmyk and 1 of 16 bits": (tiff_bytes(with_more(inks(RGB16), 1), 5), "TIFF of 5 channels of 16 bits, CMYK"),
    **{
        f"{kind}, {order}": (
            tiff_bytes(GREY.astype(kind), 1, order=order),
            f"TIFF of 1 channel of {bits} bits{what}, {SPECIAL}",
        )
        for order in "<>"
        for kind, bits, what in (
            ("i1", 8, ", signed"),
            ("i2", 16, ", signed"),
            ("i4", 32, ", signed"),
            ("u4", 32, ""),
            ("f2", 16, ", floating point"),
            ("f4", 32, ", floating point"),
            ("f8", 64, ", floating point"),
            ("c8", 64, ", complex"),
        )
    },
    "rgb of floats": (
        tiff_bytes(RGB.astype("f4")),
        f"TIFF of 3 channels of 32 bits, RGB, floating point, {SPECIAL}",
    ),
    "white": (tiff_bytes(GREY16, 0), "TIFF of 1 channel of 16 bits, in which zero is white"),
    "cfa": (tiff_bytes(GREY, 32803), "TIFF of 1 channel of 8 bits, CFA"),
    "big-endian BigTIFF": (tiff_bytes(RGB, order=">", big=True), "BigTIFF in big-endian order"),
    "lerc": (tiff_bytes(RGB, compression=34887), "TIFF with compression 34887 (LERC)"),
    "webp": (tiff_bytes(RGB, compression=50001), "TIFF with compression 50001 (WebP)"),
    "unheard of": (tiff_bytes(RGB, compression=65000), "TIFF with compression 65000"),
    "preview": (
        tiff_bytes(RGB, tags={254: 1}),
        "a camera's raw file, or another TIFF that begins with a preview",
    ),
}
SEVERAL = {
    "two": tiff_bytes(RGB, more=[(RGB[::-1], 0)]),
    "two pages of a document": tiff_bytes(RGB, more=[(RGB[::-1], 2)], tags={254: 2}),
    "reduced, then another": tiff_bytes(RGB, more=[*HALF, (RGB[::-1], 0)]),
    "two in a BigTIFF": tiff_bytes(RGB, more=[(RGB[::-1], 0)], big=True),
    "too many": tiff_bytes(RGB[:2, :2], more=[(RGB[:1, :1], 1)] * 100),
}
CUT = {
    f"{name} at {part}": data[: int(len(data) * part)]
    for name, data in {
        "rgb": tiff_bytes(RGB),
        "compressed": tiff_bytes(RGB, compression=8),
        "tiles": tiff_bytes(RGB, tile=16, compression=8),
        "planes": tiff_bytes(RGB16, planes=2),
        "BigTIFF": tiff_bytes(RGB, big=True),
    }.items()
    for part in (0.001, 0.005, 0.1, 0.5, 0.99)
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Each file's picture as the stream shows it, and those of the same pixels as PNGs."""
    folder = tmp_path_factory.mktemp("tiffs")
    (folder / "in").mkdir()
    Image.fromarray(RGB).save(folder / "in/rgb.png")
    Image.fromarray(GREY).save(folder / "in/grey.png")
    for number, data in enumerate([*KEPT.values(), *GREY_KEPT.values()]):
        (folder / f"in/{number:03}.tif").write_bytes(data)
    shard(folder / "in", folder / "out", ShardOptions(workers=1))
    pictures = {}
    with Stream(folder / "out", batch_size=16, image_size=SIDE, training=False, workers=1) as stream:
        for batch in stream:
            bytes_ = (batch.images.movedim(1, 3).numpy() * STD + MEAN) * 255
            pictures.update(zip(stream.manifest.sources(batch.samples.numpy()), bytes_, strict=True))
    return pictures


@pytest.mark.parametrize("name", [*KEPT, *GREY_KEPT])
def test_what_is_kept_is_shown_as_it_is(shown, name):
    expected = shown["rgb.png" if name in KEPT else "grey.png"]
    picture = shown[f"{[*KEPT, *GREY_KEPT].index(name):03}.tif"]
    assert np.abs(picture - expected).mean() < 1.5


@pytest.mark.parametrize("name", [*KEPT, *GREY_KEPT])
def test_resized_it_is_shown_as_it_is_too(name):
    data, expected = (KEPT[name], RGB) if name in KEPT else (GREY_KEPT[name], GREY)
    prepared = prepare_image(data, PixelOptions(resize_px=SIDE, quality=100))
    with Image.open(io.BytesIO(prepared.data)) as picture:
        shown = np.asarray(picture.convert("RGB" if name in KEPT else "L"))
    assert np.abs(shown.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("name", SET_ASIDE)
def test_what_is_set_aside_is_said_to_be_what_it_is(name, caplog):
    data, what = SET_ASIDE[name]
    way_out = r"( \(coma shard --channels (\d+) takes it as it is\))?"
    with pytest.raises(BadImageError, match=f"^unsupported format: {re.escape(what)}{way_out}$") as caught:
        prepare_image(data, PixelOptions())
    assert not caplog.records  # nothing of PIL's on the terminal
    promised = re.search(way_out + "$", str(caught.value))
    if promised is not None and promised[2] is not None:
        prepare_array(data, PixelOptions(channels=int(promised[2])))
    else:
        for channels in (1, 3):
            with pytest.raises(BadImageError):
                prepare_array(data, PixelOptions(channels=channels))


@pytest.mark.parametrize("name", SEVERAL)
def test_pages_beside_reduced_copies_and_masks_are_several_pictures(name):
    with pytest.raises(BadImageError, match=r"^animated: a TIFF of several pictures$"):
        check_image(SEVERAL[name])


@pytest.mark.parametrize("name", CUT)
def test_a_file_that_is_cut_is_called_truncated(name):
    with pytest.raises(BadImageError) as caught:
        prepare_image(CUT[name], PixelOptions())
    assert reason_kind(str(caught.value)) == "truncated"


def test_pages_that_lead_back_to_the_first_end():
    data = bytearray(tiff_bytes(RGB, more=HALF[:1]))
    entries = int.from_bytes(data[8:10], "little")
    second = int.from_bytes(data[10 + 12 * entries :][:4], "little")
    next_of_second = second + 2 + 12 * int.from_bytes(data[second : second + 2], "little")
    data[next_of_second : next_of_second + 4] = (8).to_bytes(4, "little")
    assert check_image(bytes(data)).width == SIDE
