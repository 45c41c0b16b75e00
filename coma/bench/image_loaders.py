"""Loaders that turn a sample's files into batches, and decoders alone: what `coma bench loader` compares.

All loaders make the same batches, [B, 3, S, S] float32 normalised, of random windows as torchvision's
RandomResizedCrop draws them, mirrored half of the time, resized by linear interpolation with antialiasing. Each
draws by its own means, so the windows differ, but their distribution does not. Everything runs on one thread.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import nvidia.dali.fn as fn
import torch
from nvidia.dali import Pipeline, types
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.dlpack import from_dlpack
from torchvision import transforms  # type: ignore[import-untyped]
from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]

from coma.bench.loader_result import NATIVE_DALI, REFERENCE, STREAM
from coma.bench.timing import Loading
from coma.pipeline import MEAN, STD, Stream
from coma.pipeline.crops import RATIO, random_resized_crops
from coma.pipeline.decode import Encoded
from coma.shards.manifest import Manifest

AREA = (0.2, 1.0)
_UNIT_PX = 32


@dataclass(frozen=True)
class Sample:
    """The images that all loaders share: the same files in a class folder, and in shards."""

    scratch: Path
    """Temporary folder of the benchmark, in which other libraries' formats may be written."""
    folder: Path
    """Folder of class folders, as ImageFolder wants it."""
    manifest: Manifest
    image_size: int
    batch_size: int

    @property
    def tars(self) -> list[str]:
        """Return the paths of the shards."""
        return [str(self.manifest.folder / shard) for shard in self.manifest.shards]

    @property
    def extensions(self) -> str:
        """Return the images' extensions as readers of WebDataset shards take them: "jpg;png"."""
        return ";".join(sorted({file.suffix[1:] for file in self.folder.rglob("*.*")}))

    @cached_property
    def encoded(self) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
        """Return every image's bytes."""
        m, files = self.manifest, [Path(tar).read_bytes() for tar in self.tars]
        return [
            np.frombuffer(files[shard], np.uint8, size, offset)
            for shard, offset, size in zip(m.shard_id.tolist(), m.offset.tolist(), m.size.tolist(), strict=True)
        ]

    def batches(self) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
        """Yield the sample ids of batches, [B] each, without end."""
        for number in count():
            yield np.arange(number * self.batch_size, (number + 1) * self.batch_size) % len(self.manifest)

    def inputs(self) -> Iterator[Encoded]:
        """Yield bytes and crop windows as the stream gives them to its decoder, other windows in each epoch."""
        m = self.manifest
        for number, ids in enumerate(self.batches()):
            epochs = np.full_like(ids, number * self.batch_size // len(m))
            crops = random_resized_crops(ids, epochs, m.width[ids], m.height[ids], seed=0, scale=AREA)
            yield Encoded([self.encoded[i] for i in ids], crops, self.image_size)


def pil_transform(image_size: int) -> Callable[[Any], torch.Tensor]:
    """Return the training transform of PIL images, as torchvision's own scripts have it."""
    steps = [
        transforms.RandomResizedCrop(image_size, scale=AREA, ratio=RATIO),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    return transforms.Compose(steps)  # type: ignore[no-any-return]


def coma_stream(sample: Sample, *, workers: int = 1, device: str = "cpu", decode: str = "auto") -> Loading:
    """Load by coma's stream, with its hashes and its masks."""
    masked = sample.image_size % _UNIT_PX == 0 and sample.image_size > _UNIT_PX
    stream = Stream(
        sample.manifest,
        batch_size=sample.batch_size,
        image_size=sample.image_size,
        unit_size=_UNIT_PX if masked else sample.image_size,
        views=2 if masked else 1,
        crop_scale=AREA,
        workers=workers,
        device=device,
        decode=decode,
    )
    with stream:
        for batch in stream:
            yield len(batch.images)


def image_folder(sample: Sample) -> Loading:
    """Load by torchvision's ImageFolder, which decodes with PIL, and torch's DataLoader in this process."""
    yield from load_folder(sample, pil_transform(sample.image_size))


def load_folder(sample: Sample, transform: Callable[[Any], torch.Tensor], **options: Any) -> Loading:
    """Load the files by ImageFolder with a transform; `options` are ImageFolder's."""
    files = ImageFolder(str(sample.folder), transform, is_valid_file=lambda _: True, **options)
    batches = DataLoader(files, sample.batch_size, shuffle=True, drop_last=True)
    while True:
        for images, _ in batches:
            yield len(images)


def native_dali(sample: Sample, *, threads: int = 1, gpu: int | None = None) -> Loading:
    """Load the shards by DALI's own reader, crop and mirror operators, on the GPU of that number if one is given."""

    def graph() -> Any:
        images = fn.decoders.image_random_crop(
            _read_natively(sample),
            device="cpu" if gpu is None else "mixed",
            random_aspect_ratio=list(RATIO),
            random_area=list(AREA),
            num_attempts=10,
            output_type=types.RGB,
        )
        images = fn.resize(images, size=[sample.image_size] * 2, interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.crop_mirror_normalize(
            images,
            mirror=fn.random.coin_flip(),
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
            dtype=types.FLOAT,
            output_layout="CHW",
        )

    return run_graph(sample, graph, threads=threads, gpu=gpu)


def pil_decoding(sample: Sample) -> Loading:
    """Decode whole images by PIL, and do nothing with them."""
    files = sorted(file for file in sample.folder.rglob("*") if file.is_file())
    for ids in sample.batches():
        for i in ids:
            with Image.open(files[i]) as image:
                image.convert("RGB")
        yield len(ids)


def dali_decoding(sample: Sample) -> Loading:
    """Decode whole images by DALI, and do nothing with them."""
    return run_graph(sample, lambda: fn.decoders.image(_read_natively(sample), output_type=types.RGB))


def _read_natively(sample: Sample) -> Any:
    indexes = [tar.removesuffix(".tar") + ".idx" for tar in sample.tars]
    return fn.readers.webdataset(
        paths=sample.tars, index_paths=indexes, ext=[sample.extensions], random_shuffle=True, initial_fill=256, seed=0
    )


def run_graph(sample: Sample, graph: Callable[[], Any], *, threads: int = 1, gpu: int | None = None) -> Loading:
    """Run a DALI graph: its batches become tensors where their images have one shape."""
    pipeline = Pipeline(sample.batch_size, num_threads=threads, device_id=gpu, prefetch_queue_depth=2, seed=0)
    with pipeline:
        pipeline.set_outputs(graph())
    pipeline.build()
    while True:
        (images,) = pipeline.run()
        if images.is_dense_tensor():
            from_dlpack(images.as_tensor())
        yield len(images)


LOADERS: dict[str, Callable[[Sample], Loading]] = {
    STREAM: coma_stream,
    REFERENCE: image_folder,
    NATIVE_DALI: native_dali,
}
DECODING_ALONE: dict[str, Callable[[Sample], Loading]] = {
    "decoding alone, PIL": pil_decoding,
    "decoding alone, DALI": dali_decoding,
}
