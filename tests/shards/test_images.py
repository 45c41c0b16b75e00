import io
import zlib

import numpy as np
import pytest
from PIL import Image

from coma.shards.images import BadImageError, check_and_resize, check_image


def reason(data: bytes) -> str:
    with pytest.raises(BadImageError) as caught:
        check_image(data)
    return str(caught.value)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_whole_images_are_measured_as_displayed(image, form):
    facts = check_image(image(0, 40, 30, form))
    assert (facts.width, facts.height, facts.format) == (40, 30, form.lower())


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_turns_the_size_as_pil_turns_the_image(image, form, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = image(0, 40, 30, form, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    facts = check_image(data)
    assert (facts.width, facts.height) == upright.size
    if form == "PNG":  # lossless, so the re-encoding can be compared by pixels
        resized, resized_facts = check_and_resize(data, 30, 95)
        got = np.asarray(Image.open(io.BytesIO(resized)), dtype=int)
        assert (resized_facts.width, resized_facts.height) == upright.size
        assert np.abs(got - np.asarray(upright, dtype=int)).mean() < 8  # a wrong turn gives about 60


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_photographs_pass(mode):
    file = io.BytesIO()
    Image.new(mode, (9, 7)).save(file, "JPEG")
    assert check_image(file.getvalue()).format == "jpeg"


def test_reasons(image):
    assert reason(b"") == "empty"
    assert reason(b"these are words, not pixels") == "not an image"
    jpeg = image(0, 200, 200)
    assert reason(jpeg[: len(jpeg) // 2]).startswith("truncated: ")
    assert reason(jpeg[:-2]).startswith("truncated: ")
    assert reason(jpeg[: len(jpeg) // 2] + bytes(len(jpeg) // 2)).startswith("truncated: ")  # a tail of zeros
    assert reason(jpeg[:20]).startswith("truncated: ")
    for form in ("PNG", "WEBP", "BMP", "TIFF"):
        whole = image(0, 200, 200, form)
        assert reason(whole[: len(whole) // 2]).split(":")[0] in ("truncated", "unreadable")
    assert reason(image(0, form="GIF")).startswith("unsupported format: GIF")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        file = io.BytesIO()
        frames[0].save(file, form, save_all=True, append_images=frames[1:])
        assert reason(file.getvalue()).startswith("animated: "), form


def test_a_phone_picture_with_a_second_one_appended_is_a_jpeg(image):
    file = io.BytesIO()
    first, second = (Image.open(io.BytesIO(image(seed))) for seed in (0, 1))
    first.save(file, "MPO", save_all=True, append_images=[second])
    assert check_image(file.getvalue()).format == "jpeg"


@pytest.mark.parametrize("side", [15_000, 60_000])
def test_a_bomb_is_told_by_its_header(side):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))
    assert reason(png).startswith("bomb: ")


def test_resize_never_enlarges_and_leaves_small_jpegs_alone(image):
    small = image(0, 40, 30)
    assert check_and_resize(small, 30, 90)[0] is small
    large, facts = check_and_resize(image(0, 400, 300), 30, 90)
    assert (facts.width, facts.height, facts.format) == (40, 30, "jpeg")
    assert Image.open(io.BytesIO(large)).size == (40, 30)
    again, facts = check_and_resize(image(0, 40, 30, "PNG"), 200, 90)
    assert (facts.width, facts.height) == Image.open(io.BytesIO(again)).size == (40, 30)


def test_sixteen_bit_grey_keeps_its_tones_when_resized():
    ramp = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "PNG")
    resized, _ = check_and_resize(file.getvalue(), 64, 95)
    got = np.asarray(Image.open(io.BytesIO(resized)))[..., 0]
    assert np.abs(got.astype(int) - (ramp >> 8)).max() <= 4


def test_pil_says_nothing(image, recwarn):
    check_image(image(0, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"))
    assert not list(recwarn)
