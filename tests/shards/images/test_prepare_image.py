import io
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from PIL import Image

from coma.errors import UsageError
from coma.shards.images.prepare import MAX_PIXELS, BadImageError, PixelOptions, check_image, prepare_image


def resized(data: bytes, shorter_px: int, quality: int = 90):
    return prepare_image(data, PixelOptions(resize_px=shorter_px, quality=quality))


def psnr(a, b) -> float:
    return float(10 * np.log10(255**2 / np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("decode", [True, False])
def test_whole_images_pass_untouched(image, form, decode):
    data = image(0, 40, 30, form)
    prepared = prepare_image(data, PixelOptions(decode=decode))
    assert prepared.data is data
    assert prepared.converted is None
    assert (prepared.facts.width, prepared.facts.height) == (40, 30)
    assert prepared.facts.format == {"PPM": "pnm"}.get(form, form.lower())
    assert check_image(data, decode=decode) == prepared.facts


@pytest.mark.parametrize("options", [{"resize_px": 0}, {"resize_px": 70_000}, {"quality": 0}, {"quality": 101}])
def test_options_outside_their_limits_are_refused_by_the_name_of_their_flag(options):
    flag = {"resize_px": "--resize", "quality": "--quality"}[next(iter(options))]
    with pytest.raises(UsageError, match=flag):
        PixelOptions(**options)


@pytest.mark.parametrize("pixels", [0, 178_956_971])
def test_pil_has_the_last_word_on_the_pixel_limit(pixels):
    with pytest.raises(UsageError, match="--max-pixels"):
        PixelOptions(max_pixels=pixels)
    PixelOptions(max_pixels=178_956_970)


def test_a_bomb_is_told_by_the_limit_that_was_asked_for(image):
    data = image(0, 40, 30)
    assert prepare_image(data, PixelOptions(max_pixels=1200)).data is data
    for attempt in (
        lambda: prepare_image(data, PixelOptions(max_pixels=1199)),
        lambda: check_image(data, max_pixels=1199, decode=False),
    ):
        with pytest.raises(BadImageError, match=r"^bomb: 40x30 pixels, the limit is 1199"):
            attempt()
    with pytest.raises(BadImageError, match=r"^bomb: 40x30 pixels, the limit for WEBP is 1000"):
        check_image(image(0, 40, 30, "WEBP"), max_pixels=2000)  # it takes twice the memory


def test_the_header_alone_does_not_tell_a_cut_jpeg(image):
    data = image(0, 200, 200)
    half = data[: len(data) // 2]
    assert prepare_image(half, PixelOptions(decode=False)).data is half
    with pytest.raises(BadImageError, match=r"^truncated: "):
        prepare_image(half, PixelOptions())


def test_resize_never_enlarges_and_leaves_small_jpegs_alone(image):
    small = image(0, 40, 30)
    assert resized(small, 30).data is small
    assert resized(small, 30).converted is None
    large = resized(image(0, 400, 300), 30)
    assert (large.facts.width, large.facts.height, large.facts.format) == (40, 30, "jpeg")
    assert large.converted == "resized"
    assert Image.open(io.BytesIO(large.data)).size == (40, 30)
    again = resized(image(0, 40, 30, "PNG"), 200)
    assert (again.facts.width, again.facts.height, again.facts.format) == (40, 30, "jpeg")


def test_a_small_jpeg_that_is_cut_is_not_left_alone(image):
    with pytest.raises(BadImageError, match=r"^truncated: "):
        resized(image(0, 40, 30)[:-30], 30)


@pytest.mark.parametrize("width", [1600, 1601, 1607])
def test_decoding_at_a_fraction_shows_in_no_picture(image, width):
    # fine enough that it would
    noise = np.random.default_rng(0).integers(0, 256, (width // 3, width // 2, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, 1203), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    shown = Image.open(io.BytesIO(resized(file.getvalue(), 128, quality=100).data))
    whole = Image.open(io.BytesIO(file.getvalue())).resize(shown.size, Image.Resampling.LANCZOS)
    expected = io.BytesIO()
    whole.save(expected, "JPEG", quality=100)
    assert psnr(shown, Image.open(expected)) > 40


def test_resizing_drops_what_was_said_about_the_source(image):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    data = image(0, 400, 300, comment=b"a comment", exif=exif, icc_profile=b"a profile")
    shown = Image.open(io.BytesIO(resized(data, 60).data))
    assert shown.size == (60, 80)
    assert not {"comment", "exif", "icc_profile"} & shown.info.keys()


def test_grey_stays_grey(image):
    file = io.BytesIO()
    Image.open(io.BytesIO(image(0, 400, 300))).convert("L").save(file, "JPEG")
    assert Image.open(io.BytesIO(resized(file.getvalue(), 60).data)).mode == "L"


def test_sixteen_bit_grey_keeps_its_tones_when_resized():
    ramp = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "PNG")
    got = np.asarray(Image.open(io.BytesIO(resized(file.getvalue(), 64, 95).data)))
    assert np.abs(got.astype(int) - (ramp >> 8)).max() <= 4


def test_what_does_not_fit_a_jpeg_is_set_aside_when_resized():
    file = io.BytesIO()
    Image.new("L", (70_000, 2)).save(file, "PNG")
    assert prepare_image(file.getvalue(), PixelOptions()).facts.width == 70_000
    with pytest.raises(BadImageError, match=r"^unsupported format: 70000x2"):
        resized(file.getvalue(), 2)


def test_pil_says_nothing_and_its_voice_is_given_back(image, recwarn):
    data = image(0, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    before = warnings.filters[:]
    threads = [threading.Thread(target=lambda: [check_image(data) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not list(recwarn)
    assert warnings.filters == before


MEMORY = """
import io, os, resource
from PIL import Image
from coma.shards.images.prepare import MAX_PIXELS, PixelOptions, prepare_image
import coma.shards.write.one_shard
side = int(MAX_PIXELS**0.5)
reading, writing = os.pipe()
if os.fork() == 0:  # making it takes more memory than checking it
    file = io.BytesIO()
    Image.effect_mandelbrot((1024, 1024), (-3, -2.5, 2, 2.5), 100).convert("RGB").resize((side, side)).save(
        file, "JPEG", progressive=True, subsampling=0)
    with os.fdopen(writing, "wb") as out:
        out.write(file.getvalue())
    os._exit(0)
os.close(writing)
with os.fdopen(reading, "rb") as source:
    data = source.read()
os.wait()
for resize_px in (None, 256):
    prepared = prepare_image(data, PixelOptions(resize_px=resize_px))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_the_largest_progressive_jpeg_takes_less_than_a_gibibyte():
    assert MAX_PIXELS == 2**26
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 2**20  # KiB
