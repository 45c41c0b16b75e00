"""A second data set for the comparison, cut from photographs: which of them is a small window from?

    python -m benchmarks.epochs.windows PHOTOGRAPHS OUT [--classes 100] [--train 500] [--test 50]
    coma shard OUT OUT-shards

PHOTOGRAPHS is a folder of images, whatever lies below it. The first `--classes` of them by path are the classes. Each
is resized to a shorter side of 160 px, and windows of 32 px are cut from it at random: those of split
train from its left three quarters, those of test from the rest, so no pixel is in both. None of the choices in
variants.py has seen these images.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from coma.errors import ComaError, DataError

SHORTER_SIDE, WINDOW = 160, 32
TRAIN_SHARE = 0.75
"""Share of a photograph's width, from the left, that windows to train on are cut from."""


def cut_windows(photographs: Path, out: Path, *, classes: int, train: int, test: int) -> None:
    """Write OUT/train/<photograph>/*.png and OUT/test/<photograph>/*.png, the same ones every time.

    Raises:
        DataError: OUT is there already, or there are too few photographs.
    """
    if out.exists():
        raise DataError(f"{out} is there already; name a new folder")
    chosen = []
    for photograph in _readable(photographs):
        chosen.append(photograph)
        if len(chosen) == classes:
            break
    else:
        raise DataError(f"{photographs} holds {len(chosen)} photographs; take --classes fewer")
    for number, image in enumerate(chosen):
        draw = np.random.default_rng(number)
        edge = round(TRAIN_SHARE * image.width)
        for split, count, left, right in (("train", train, 0, edge), ("test", test, edge, image.width)):
            folder = out / split / f"photograph-{number:03}"
            folder.mkdir(parents=True)
            for index in range(count):
                x = int(draw.integers(left, right - WINDOW + 1))
                y = int(draw.integers(0, image.height - WINDOW + 1))
                image.crop((x, y, x + WINDOW, y + WINDOW)).save(folder / f"{index:04}.png")


def _readable(photographs: Path) -> Iterator[Image.Image]:
    """Yield the photographs by path, resized; what is no image is passed over."""
    for path in sorted(photographs.rglob("*")):
        try:
            image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        except OSError:
            continue
        scale = SHORTER_SIDE / min(image.size)
        yield image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and cut."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.epochs.windows", description="cut windows as classes")
    parser.add_argument("photographs", type=Path, metavar="PHOTOGRAPHS")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--classes", type=int, default=100, help="photographs (default 100)")
    parser.add_argument("--train", type=int, default=500, help="windows of each to train on (default 500)")
    parser.add_argument("--test", type=int, default=50, help="windows of each to test on (default 50)")
    given = parser.parse_args(arguments)
    try:
        cut_windows(given.photographs, given.out, classes=given.classes, train=given.train, test=given.test)
    except ComaError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
