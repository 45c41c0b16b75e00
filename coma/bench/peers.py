"""Other libraries that read images fast, compared where they are installed.

Each is given the sample in the format it wants, written into the benchmark's own folder, and used as its
documentation has it. None is a dependency of coma.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from coma.bench.ways import AREA, Sample, Way, encoded_transform
from coma.pipeline import MEAN, STD
from coma.pipeline.crops import RATIO


def mosaic_streaming(sample: Sample) -> Way:
    """MosaicML's StreamingDataset over MDS shards that hold the encoded images."""
    import streaming

    folder = str(sample.scratch / "mds")
    with streaming.MDSWriter(out=folder, columns={"image": "bytes", "label": "int"}) as writer:
        for image in sample.encoded:
            writer.write({"image": image.tobytes(), "label": 0})
    transform = encoded_transform(sample.image_size)

    class Images(streaming.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            found = super().__getitem__(index)
            return transform(found["image"]), found["label"]

    files = Images(local=folder, batch_size=sample.batch_size, shuffle=True)
    loader: DataLoader[Any] = DataLoader(files, sample.batch_size)
    while True:
        for images, _ in loader:
            yield len(images)


def litdata_streaming(sample: Sample) -> Way:
    """LitData's StreamingDataset over chunks that hold the encoded images.

    The chunks are written by what `litdata.optimize` writes them with, not by that itself: it starts processes,
    and deletes $TMPDIR/data and $TMPDIR/chunks.
    """
    os.environ["LITDATA_DISABLE_VERSION_CHECK"] = "1"  # it would ask PyPI
    import litdata
    from litdata.streaming import Cache

    folder = str(sample.scratch / "litdata")
    chunks = Cache(folder, chunk_bytes="64MB")
    for number, image in enumerate(sample.encoded):
        chunks[number] = {"image": image.tobytes(), "label": 0}
    chunks.done()
    chunks.merge()
    decode = encoded_transform(sample.image_size)

    def transform(found: Any) -> Any:
        return decode(found["image"]), found["label"]

    files = litdata.StreamingDataset(folder, shuffle=True, transform=transform)
    loader = litdata.StreamingDataLoader(files, batch_size=sample.batch_size)
    while True:
        for images, _ in loader:
            yield len(images)


def ffcv_loader(sample: Sample) -> Way:
    """FFCV's Loader over its own file of JPEGs."""
    from ffcv import loader, transforms
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder

    file = sample.scratch / "images.beton"
    # It forks its writers, which must not happen in a process with threads.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _silence) as processes:
        processes.submit(_write_beton, sample.folder, file).result()
    side, scale = sample.image_size, 255.0
    steps = [
        RandomResizedCropRGBImageDecoder((side, side), AREA, RATIO),
        transforms.RandomHorizontalFlip(),
        transforms.NormalizeImage(scale * np.array(MEAN), scale * np.array(STD), np.float32),
        transforms.ToTensor(),
        transforms.ToTorchImage(),
    ]
    batches = loader.Loader(
        str(file),
        batch_size=sample.batch_size,
        num_workers=1,
        os_cache=True,
        order=loader.OrderOption.RANDOM,
        drop_last=True,
        pipelines={"image": steps},
    )
    while True:
        for (images,) in batches:
            yield len(images)


def _write_beton(folder: Path, file: Path) -> None:
    """Write FFCV's file of the images of a folder. For a process of its own."""
    from ffcv.fields import RGBImageField
    from ffcv.writer import DatasetWriter

    DatasetWriter(str(file), {"image": RGBImageField(write_mode="jpg")}, num_workers=1).from_indexed_dataset(
        _Images(sorted(path for path in folder.rglob("*") if path.is_file()))
    )


@dataclass(frozen=True)
class _Images:
    """A data set as FFCV's writer wants it."""

    files: list[Path]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image]:
        with Image.open(self.files[index]) as image:
            return (image.convert("RGB"),)


def _silence() -> None:
    """Keep a process's progress bars off the terminal."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115


@dataclass(frozen=True)
class Peer:
    """A library that may be installed."""

    package: str
    """As pip knows it."""
    name: str
    """As the table has it."""
    way: Callable[[Sample], Way]
    note: str = ""
    """Why its figure is not to be compared as it stands."""

    @property
    def installed(self) -> bool:
        """Whether it is; it may be broken all the same."""
        try:
            version(self.package)
        except PackageNotFoundError:
            return False
        return True


PEERS = (
    Peer("mosaicml-streaming", "mosaicml-streaming + PIL", mosaic_streaming),
    Peer("litdata", "litdata + PIL", litdata_streaming),
    Peer("ffcv", "ffcv", ffcv_loader, "other work: JPEG quality 90 of its own making, resized by areas"),
)
