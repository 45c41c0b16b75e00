"""How fast coma's stream is beside other libraries that load images, on a sample of your own shards.

    python -m benchmarks.loaders DATA [--images N] [--rounds 5] [--image-size 224] [--plot PNG] [--json OUT]

This is `coma bench loader` (the same sample, batches and turns; see `coma/bench/loader.py`) with more loaders in its
table: torchvision's decoder and webdataset, and mosaicml-streaming, litdata and ffcv where they are installed; none
of those three is a dependency of coma. Each is given the sample in the format that it wants, written into the
benchmark's own folder, and used as its documentation has it.
"""

import argparse
import io
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.io import ImageReadMode, decode_image  # type: ignore[import-untyped]
from torchvision.transforms import v2  # type: ignore[import-untyped]

from coma.bench.image_loaders import AREA, Sample, load_folder, pil_transform
from coma.bench.loader import bench_loader
from coma.bench.loader_result import LoaderResult
from coma.bench.options import LoaderOptions
from coma.bench.timing import Loading
from coma.pipeline import MEAN, STD
from coma.pipeline.crops import RATIO


def encoded_transform(image_size: int) -> Callable[[bytes], torch.Tensor]:
    """Return the training transform of an image's bytes, decoded by PIL."""
    transform = pil_transform(image_size)

    def from_bytes(data: bytes) -> torch.Tensor:
        with Image.open(io.BytesIO(data)) as image:
            return transform(image.convert("RGB"))

    return from_bytes


def torchvision_decoding(sample: Sample) -> Loading:
    """Load by ImageFolder without PIL: torchvision decodes, and transforms tensors of bytes."""
    steps = [
        v2.RandomResizedCrop(sample.image_size, scale=AREA, ratio=RATIO, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ]
    yield from load_folder(sample, v2.Compose(steps), loader=lambda path: decode_image(path, ImageReadMode.RGB))


def web_dataset(sample: Sample) -> Loading:
    """Load the same shards by the webdataset library, with the same transform."""
    shards = webdataset.WebDataset(sample.tars, shardshuffle=False, empty_check=False)
    pairs = shards.decode("pil").to_tuple(sample.extensions, "cls").map_tuple(pil_transform(sample.image_size), int)
    for images, _ in DataLoader(pairs.repeat(), sample.batch_size):
        yield len(images)


def mosaic_streaming(sample: Sample) -> Loading:
    """Load by MosaicML's StreamingDataset from MDS shards that hold the encoded images."""
    import streaming

    folder = str(sample.scratch / "mds")
    with streaming.MDSWriter(out=folder, columns={"image": "bytes", "label": "int"}) as writer:
        for image in sample.encoded:
            writer.write({"image": image.tobytes(), "label": 0})
    transform = encoded_transform(sample.image_size)

    class Images(streaming.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            sample = super().__getitem__(index)
            return transform(sample["image"]), sample["label"]

    files = Images(local=folder, batch_size=sample.batch_size, shuffle=True)
    loader: DataLoader[Any] = DataLoader(files, sample.batch_size)
    while True:
        for images, _ in loader:
            yield len(images)


def litdata_streaming(sample: Sample) -> Loading:
    """Load by LitData's StreamingDataset from chunks that hold the encoded images.

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

    def transform(sample: Any) -> Any:
        return decode(sample["image"]), sample["label"]

    files = litdata.StreamingDataset(folder, shuffle=True, transform=transform)
    loader = litdata.StreamingDataLoader(files, batch_size=sample.batch_size)
    while True:
        for images, _ in loader:
            yield len(images)


def ffcv_loader(sample: Sample) -> Loading:
    """Load by FFCV's Loader from its own file of JPEGs."""
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
    """Write a folder's images as FFCV's file. To be run in a process of its own."""
    from ffcv.fields import RGBImageField
    from ffcv.writer import DatasetWriter

    DatasetWriter(str(file), {"image": RGBImageField(write_mode="jpg")}, num_workers=1).from_indexed_dataset(
        _Pictures(sorted(path for path in folder.rglob("*") if path.is_file()))
    )


@dataclass(frozen=True)
class _Pictures:
    """Data set as FFCV's writer wants it."""

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
    """A loader of another library, which may not be installed."""

    package: str
    """The library's name on PyPI."""
    name: str
    """The loader's name in the table."""
    load: Callable[[Sample], Loading]

    @property
    def installed(self) -> bool:
        """Whether the package is installed; it may be broken all the same."""
        try:
            version(self.package)
        except PackageNotFoundError:
            return False
        return True


PEERS = (
    Peer("torchvision", "ImageFolder + torchvision", torchvision_decoding),
    Peer("webdataset", "webdataset + PIL", web_dataset),
    Peer("mosaicml-streaming", "mosaicml-streaming + PIL", mosaic_streaming),
    Peer("litdata", "litdata + PIL", litdata_streaming),
    Peer("ffcv", "ffcv (other work)", ffcv_loader),
)
NOTE = "ffcv: JPEG quality 90 of its own making, resized by areas, so not to be compared as it stands"


def measure(data: Path, options: LoaderOptions) -> tuple[LoaderResult, dict[str, Any]]:
    """Measure the command's loaders and all peers that are installed: the result, and it as JSON values."""
    peers = [peer for peer in PEERS if peer.installed]
    with own_temporary_folder():
        result = bench_loader(data, options, others={peer.name: peer.load for peer in peers})
    figures = result.to_json()
    figures["versions"] |= {peer.package: version(peer.package) for peer in peers}
    figures["not_installed"] = [peer.package for peer in PEERS if peer not in peers]
    return result, figures


@contextmanager
def own_temporary_folder() -> Iterator[None]:
    """Keep what other libraries write into the system's temporary folder, and delete there, in one of our own."""
    with tempfile.TemporaryDirectory(prefix="coma-bench-") as folder:
        before = tempfile.tempdir, os.environ.get("TMPDIR")
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            tempfile.tempdir = before[0]
            if before[1] is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before[1]


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="How fast coma's stream is beside other libraries' loaders.")
    parser.add_argument("data", type=Path, help="a sharded data set")
    parser.add_argument("--images", type=int, help="number in the sample (default: by their size)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each loader (default 5)")
    parser.add_argument("--image-size", type=int, default=224, help="side of a batch's images in pixels (default 224)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="also draw the rates")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures to a file")
    given = parser.parse_args()
    options = LoaderOptions(images=given.images, rounds=given.rounds, image_size=given.image_size)
    result, figures = measure(given.data, options)
    print("\n".join(result.to_lines()))
    if "ffcv (other work)" in result.loaders:
        print(NOTE)
    if figures["not_installed"]:
        print(f"not installed: {', '.join(figures['not_installed'])}; pip install them to compare")
    if given.plot is not None:
        result.write_plot(given.plot)
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
