"""The graph against PIL: the same window of the same file, on everything people have."""

import io

import numpy as np
import pytest
import torch
from devices import DEVICE
from drawn import photograph
from PIL import Image, ImageOps
from torch import Tensor

from coma.errors import ComaError
from coma.pipeline import MEAN, STD
from coma.pipeline.crops import Crops
from coma.pipeline.decode import DecodeError, Decoder, Encoded, HeaderCheck, _fault

SIZE = 64
CLOSE_DB = 40.0 if DEVICE == "cpu" else 33.0
"""Least PSNR against PIL. A GPU's decoder has an inverse DCT and an upsampling of chroma of its own."""


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def window(top: int, left: int, height: int, width: int, flip: int = 0) -> Crops:
    return Crops(np.array([[top, left]], np.int32), np.array([[height, width]], np.int32), np.array([flip], np.int32))


def decoder(batches: list[Encoded], batch_size: int = 4, depth: int = 1, threads: int = 1) -> Decoder:
    feed = iter(batches)
    return Decoder(
        lambda: next(feed, None),
        batch_size=batch_size,
        device=torch.device(DEVICE, 0),
        decode_on_gpu=DEVICE == "cuda",
        threads=threads,
        depth=depth,
    )


def done(images: Tensor | None) -> Tensor | None:
    """Wait until a GPU has made a batch."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return images


def one(run: Decoder, data: np.ndarray, crop: Crops, side: int = SIZE) -> Tensor:
    image = done(run.decode_one(data, crop, side))
    assert image is not None
    return image


def alike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether an image is the same in two batches: of a batch, a GPU gives a part to its hardware decoder."""
    return torch.equal(ours, theirs) or (DEVICE == "cuda" and bool((ours - theirs).abs().mean() < 0.03))


def pixels(image: Tensor) -> np.ndarray:
    """[3, H, W] normalised → [H, W, 3] from 0 to 255."""
    image = image.cpu()
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return ((image * std + mean) * 255).permute(1, 2, 0).double().numpy()


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(ours - theirs).mean()))


def by_pil(data: np.ndarray, crop: Crops) -> np.ndarray:
    with Image.open(io.BytesIO(data.tobytes())) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    (top, left), (height, width) = crop.start[0].tolist(), crop.shape[0].tolist()
    image = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.asarray(ImageOps.mirror(image) if crop.flip[0] else image, np.float64)


def rotated(orientation: int) -> np.ndarray:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(photograph(4, 200, 120), quality=90, exif=exif)


FILES = {
    "jpeg": (encode(photograph(0, 200, 120), quality=90), window(10, 20, 100, 150)),
    "mirrored": (encode(photograph(0, 200, 120), quality=90), window(10, 20, 100, 150, flip=1)),
    "subsampled": (encode(photograph(0, 200, 120), quality=75, subsampling=2), window(11, 21, 99, 151)),
    "progressive": (encode(photograph(1, 200, 120), quality=90, progressive=True), window(7, 3, 100, 150)),
    "grey": (encode(photograph(2, 200, 120).convert("L")), window(0, 0, 120, 200)),
    "enlarged": (encode(photograph(3, 200, 120), quality=90), window(30, 40, 20, 30)),
    "png": (encode(photograph(5, 200, 120), "PNG"), window(10, 20, 100, 150)),
    "palette": (encode(photograph(5, 200, 120).quantize(64), "PNG"), window(10, 20, 100, 150)),
    "webp": (encode(photograph(6, 200, 120), "WEBP", quality=90), window(10, 20, 100, 150)),
} | {f"exif-{orientation}": (rotated(orientation), window(10, 20, 60, 90)) for orientation in range(2, 9)}


@pytest.mark.gpu_too
@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_pil(name: str) -> None:
    data, crop = FILES[name]
    image = one(decoder([]), data, crop)
    assert image.shape == (1, 3, SIZE, SIZE)
    assert image.dtype == torch.float32
    assert psnr(pixels(image[0]), by_pil(data, crop)) > CLOSE_DB


@pytest.mark.gpu_too
def test_cmyk_comes_out_as_rgb() -> None:
    """Converters differ in how they mix inks: near is near enough. Mixed-up channels would be below 15 dB."""
    data = encode(photograph(7, 200, 120).convert("CMYK"), quality=95)
    crop = window(0, 0, 120, 200)
    assert psnr(pixels(one(decoder([]), data, crop)[0]), by_pil(data, crop)) > (30 if DEVICE == "cpu" else 25)


def test_headers_are_checked_before_a_batch_is_made() -> None:
    data = [data for data, _ in FILES.values()]
    text, size = np.frombuffer(b"not an image" * 20, np.uint8), len(data)
    turned = [name.startswith("exif") and int(name[-1]) >= 5 for name in FILES]
    width, height = np.where(turned, 120, 200), np.where(turned, 200, 120)
    check = HeaderCheck(size + 2)
    assert check.faults(data, width, height) == {}
    more = check.faults([*data, text, data[0][150:]], np.append(width, [9, 9]), np.append(height, [9, 9]))
    assert set(more) == {size, size + 1}
    assert all("header" in reason for reason in more.values())
    swapped = check.faults(data, height, width)
    assert set(swapped) == set(range(size))
    assert swapped[0] == "it is displayed 200x120 pixels, not the manifest's 120x200"
    assert check.faults([], np.empty(0, int), np.empty(0, int)) == {}


def batches(count: int, size: int = 4) -> list[Encoded]:
    made = []
    for number in range(count):
        data = [encode(photograph(number * size + i, 120, 100)) for i in range(size)]
        start, shape = np.full((size, 2), number, np.int32), np.full((size, 2), 80 + number, np.int32)
        crops = Crops(start, shape, np.arange(size, dtype=np.int32) % 2)
        made.append(Encoded(data, crops, side=SIZE if number < 5 else 2 * SIZE))
    return made


@pytest.mark.gpu_too
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_batches_come_in_order_and_keep_their_memory(depth: int) -> None:
    given = batches(8)
    run = decoder(given, depth=depth)
    held, copies = [], []
    while (images := done(run.run())) is not None:
        held.append(images)
        copies.append(images.clone())
    assert len(held) == 8
    for batch, images, copy in zip(given, held, copies, strict=True):
        assert images.shape == (4, 3, batch.side, batch.side)
        assert torch.equal(images, copy)  # no later batch was written over it
        alone = [one(run, data, batch.crops[i : i + 1], batch.side) for i, data in enumerate(batch.data)]
        assert alike(images, torch.cat(alone))  # an image does not depend on its batch


@pytest.mark.gpu_too
def test_tensors_outlive_the_decoder() -> None:
    given = batches(2)
    run = decoder(given)
    held = [done(run.run()), done(run.run())]
    copies = [images.clone() for images in held if images is not None]
    del run
    _ = [torch.ones(4, 3, SIZE, SIZE, device=DEVICE) for _ in range(50)]  # what was freed would be taken again
    assert all(torch.equal(images, copy) for images, copy in zip(held, copies, strict=True) if images is not None)


REASONS = {"text": "nvImageCodec", "header": "nvImageCodec", "outside": "cropping window"}


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("bad", REASONS)
def test_a_bad_image_loses_its_own_batch_alone(depth: int, bad: str) -> None:
    given = batches(6)
    for number in (2, 3):
        data, crops = list(given[number].data), given[number].crops
        if bad == "outside":
            crops.shape[1] = 500
        else:
            data[1] = np.frombuffer(b"not an image" * 20, np.uint8) if bad == "text" else data[1][150:]
        given[number] = Encoded(data, crops, SIZE)
    run = decoder(given, depth=depth)
    for number in range(6):
        if number in (2, 3):
            with pytest.raises(DecodeError, match=REASONS[bad]) as caught:
                run.run()
            assert "\n" not in str(caught.value)
        else:
            images = run.run()
            assert images is not None
            first = given[number]
            assert torch.equal(images[:1], run.decode_one(first.data[0], first.crops[:1], first.side))
    assert run.run() is None


DALI = """Critical error in pipeline:
Error in Mixed operator `nvidia.dali.fn.decoders.image_slice`,
which was used in the pipeline definition with the following traceback:

  File "/home/cuda error/decode.py", line 7, in _build
    images = fn.decoders.image_slice(

encountered:

{}

Current pipeline object is no longer valid."""


@pytest.mark.parametrize(
    ("reason", "of_gpu"),
    [
        ("CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory", True),
        ("CUDA driver API error CUDA_ERROR_OUT_OF_MEMORY (2):", True),
        ("std::bad_alloc", True),
        ("Can't allocate 12345 bytes on device 0.", True),
        ("Failed to decode sample #1 : ", False),
        ("nvImageCodec failure: '#4'", False),
    ],
)
def test_what_fails_on_a_gpu_is_not_blamed_on_an_image(reason: str, of_gpu: bool) -> None:
    first = reason.splitlines()[0].removesuffix(":")
    found = _fault(DALI.format(reason), on_gpu=True)
    assert isinstance(found, ComaError) == of_gpu
    if of_gpu:
        assert str(found) == f"decoding on the GPU failed ({first}): give a smaller --batch-size, or --decode cpu"
    assert isinstance(_fault(DALI.format(reason), on_gpu=False), DecodeError)


@pytest.mark.gpu
def test_a_batch_is_copied_before_dali_uses_its_memory_again() -> None:
    """The copy waits behind other work of its CUDA stream, while the next batches are decoded."""
    given = batches(8)
    unhurried = decoder(given, depth=2)
    expected = [done(unhurried.run()) for _ in given]
    run = decoder(given, depth=2)
    held = []
    for _ in given:
        if run.stream is not None:
            with torch.cuda.stream(run.stream):
                torch.cuda._sleep(40_000_000)  # cycles: some 20 ms, in which many such batches are decoded
        held.append(run.run())
    done(None)
    for images, its in zip(held, expected, strict=True):
        assert images is not None
        assert its is not None
        assert torch.equal(images, its)
