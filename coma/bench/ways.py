"""Ways from files to batches: endless generators, each yielding how many images it has just handed over.

The whole ways make the same batches, [B, 3, S, S] float32 normalised, of random windows as torchvision's
RandomResizedCrop draws them, mirrored half of the time, resized by linear interpolation with antialiasing. Each
draws by its own means, so the windows differ, but their distribution does not. Everything runs on one thread.
"""

import io
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import nvidia.dali.fn as fn
import torch
import webdataset
from nvidia.dali import Pipeline, types
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.dlpack import from_dlpack
from torchvision import transforms  # type: ignore[import-untyped]
from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]
from torchvision.io import ImageReadMode, decode_image  # type: ignore[import-untyped]
from torchvision.transforms import v2  # type: ignore[import-untyped]

from coma.pipeline import MEAN, STD, Stream
from coma.pipeline.crops import RATIO, random_resized_crops
from coma.pipeline.decode import Encoded
from coma.shards.manifest import Manifest

Way = Generator[int, None, None]
AREA = (0.2, 1.0)
_UNIT_PX = 32
_AHEAD = 2  # batches in a native graph, DALI's own default


@dataclass(frozen=True)
class Sample:
    """The images that all ways share: the same files in a class folder, and in shards."""

    scratch: Path
    """A folder of the benchmark's own, for what other libraries read."""
    folder: Path
    """Class folders, as ImageFolder wants them."""
    manifest: Manifest
    image_size: int
    batch_size: int

    @property
    def tars(self) -> list[str]:
        """Paths of the shards."""
        return [str(self.manifest.folder / shard) for shard in self.manifest.shards]

    @property
    def extensions(self) -> str:
        """As readers of WebDataset shards take them: "jpg;png"."""
        return ";".join(sorted({file.suffix[1:] for file in self.folder.rglob("*.*")}))

    @cached_property
    def encoded(self) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
        """Every image's bytes."""
        m, files = self.manifest, [Path(tar).read_bytes() for tar in self.tars]
        return [
            np.frombuffer(files[shard], np.uint8, size, offset)
            for shard, offset, size in zip(
                m.shard_id.tolist(), m.offset.tolist(), m.size.tolist(), strict=True
            )
        ]

    def batches(self) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
        """Sample ids, [B] each, over and over."""
        for number in count():
            yield np.arange(number * self.batch_size, (number + 1) * self.batch_size) % len(self.manifest)

    def inputs(self) -> Iterator[Encoded]:
        """Bytes and windows, as the stream gives them to its decoder: in each turn other windows."""
        m = self.manifest
        for number, ids in enumerate(self.batches()):
            epochs = np.full_like(ids, number * self.batch_size // len(m))
            crops = random_resized_crops(ids, epochs, m.width[ids], m.height[ids], seed=0, scale=AREA)
            yield Encoded([self.encoded[i] for i in ids], crops, self.image_size)


def pil_transform(image_size: int) -> Callable[[Any], torch.Tensor]:
    """From a PIL image, as torchvision's own training scripts have it."""
    steps = [
        transforms.RandomResizedCrop(image_size, scale=AREA, ratio=RATIO),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    return transforms.Compose(steps)  # type: ignore[no-any-return]


def encoded_transform(image_size: int) -> Callable[[bytes], torch.Tensor]:
    """From an image's bytes, by PIL."""
    transform = pil_transform(image_size)

    def from_bytes(data: bytes) -> torch.Tensor:
        with Image.open(io.BytesIO(data)) as image:
            return transform(image.convert("RGB"))

    return from_bytes


# Whole ways


def coma_stream(sample: Sample) -> Way:
    """The stream, with its hashes and its masks."""
    masked = sample.image_size % _UNIT_PX == 0 and sample.image_size > _UNIT_PX
    stream = Stream(
        sample.manifest,
        batch_size=sample.batch_size,
        image_size=sample.image_size,
        unit_size=_UNIT_PX if masked else sample.image_size,
        views=2 if masked else 1,
        crop_scale=AREA,
        workers=1,
    )
    with stream:
        for batch in stream:
            yield len(batch.images)


def image_folder(sample: Sample) -> Way:
    """torchvision's ImageFolder, which decodes with PIL, and torch's DataLoader in this process."""
    yield from _folder(sample, pil_transform(sample.image_size))


def torchvision_decoding(sample: Sample) -> Way:
    """ImageFolder without PIL: torchvision decodes and transforms tensors of bytes."""
    steps = [
        v2.RandomResizedCrop(sample.image_size, scale=AREA, ratio=RATIO, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ]

    def load(path: str) -> torch.Tensor:
        return decode_image(path, ImageReadMode.RGB)  # type: ignore[no-any-return]

    yield from _folder(sample, v2.Compose(steps), loader=load)


def _folder(sample: Sample, transform: Callable[[Any], torch.Tensor], **options: Any) -> Way:
    files = ImageFolder(str(sample.folder), transform, is_valid_file=lambda _: True, **options)
    batches = DataLoader(files, sample.batch_size, shuffle=True, drop_last=True)
    while True:
        for images, _ in batches:
            yield len(images)


def web_dataset(sample: Sample) -> Way:
    """The webdataset library over the same shards, with the same transform."""
    shards = webdataset.WebDataset(sample.tars, shardshuffle=False, empty_check=False)
    pairs = (
        shards.decode("pil")
        .to_tuple(sample.extensions, "cls")
        .map_tuple(pil_transform(sample.image_size), int)
    )
    loader = DataLoader(pairs.repeat(), sample.batch_size)
    for images, _ in loader:
        yield len(images)


def native_dali(sample: Sample) -> Way:
    """DALI's own reader, window and mirror over the same shards."""

    def graph() -> Any:
        images = fn.decoders.image_random_crop(
            _read_natively(sample),
            random_aspect_ratio=list(RATIO),
            random_area=list(AREA),
            num_attempts=10,
            output_type=types.RGB,
        )
        return _finish(images, sample.image_size, fn.random.coin_flip())

    return run_graph(sample, graph)


# Decoding alone, the limit


def pil_decoding(sample: Sample) -> Way:
    """Whole images by PIL."""
    files = sorted(file for file in sample.folder.rglob("*") if file.is_file())
    for ids in sample.batches():
        for i in ids:
            with Image.open(files[i]) as image:
                image.convert("RGB")
        yield len(ids)


def dali_decoding(sample: Sample) -> Way:
    """Whole images by DALI, and nothing done with them."""
    return run_graph(sample, lambda: fn.decoders.image(_read_natively(sample), output_type=types.RGB))


# Parts of DALI's graphs


def _read_natively(sample: Sample) -> Any:
    indexes = [tar.removesuffix(".tar") + ".idx" for tar in sample.tars]
    return fn.readers.webdataset(
        paths=sample.tars,
        index_paths=indexes,
        ext=[sample.extensions],
        random_shuffle=True,
        initial_fill=256,
        seed=0,
    )


def _finish(images: Any, image_size: int, mirror: Any) -> Any:
    images = fn.resize(images, size=[image_size] * 2, interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.crop_mirror_normalize(
        images,
        mirror=mirror,
        mean=[255 * value for value in MEAN],
        std=[255 * value for value in STD],
        dtype=types.FLOAT,
        output_layout="CHW",
    )


def run_graph(sample: Sample, graph: Callable[[], Any], depth: int = _AHEAD) -> Way:
    """A graph's batches, as tensors where its images have one shape."""
    pipeline = Pipeline(
        batch_size=sample.batch_size, num_threads=1, device_id=None, prefetch_queue_depth=depth, seed=0
    )
    with pipeline:
        pipeline.set_outputs(graph())
    pipeline.build()
    while True:
        (images,) = pipeline.run()
        if images.is_dense_tensor():
            from_dlpack(images.as_tensor())
        yield len(images)
