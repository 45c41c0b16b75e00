"""Files of drawn scenes: folders of a class each, or images beside masks for segmentation."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from coma.demo.scenes import CLASS_NAMES, JPEG_QUALITY, SEGMENT_NAMES, draw_segmented_scene
from coma.errors import UsageError


def _write_some(folder: str, split: str, seed: int, masks: bool, start: int, stop: int) -> None:
    for number in range(start, stop):
        label = number % len(CLASS_NAMES)
        # Keyed by what the picture is, not by a generator's history: any process draws any picture alike.
        rng = np.random.default_rng([seed, int(split == "val"), number])
        target = Path(folder) / split / CLASS_NAMES[label] / f"{number // len(CLASS_NAMES) + 1:05d}.jpg"
        picture, segments = draw_segmented_scene(label, rng)
        if masks:
            target = Path(folder) / "images" / split / f"{number + 1:05d}.jpg"
            segments.save(Path(folder) / "masks" / split / f"{number + 1:05d}.png")
        picture.save(target, quality=int(rng.integers(*JPEG_QUALITY)))


def write_scenes(
    folder: Path,
    *,
    train: int = 2400,
    val: int = 600,
    seed: int = 0,
    masks: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write FOLDER/train/<class>/00001.jpg … and FOLDER/val/…: the same files for the same seed and counts.

    `train` and `val` are numbers of pictures, spread evenly over the ten classes. `workers` processes draw
    them (None: one a core); `progress(drawn, in all)` is called now and then. With `masks` it is
    FOLDER/images/train/00001.jpg …, FOLDER/masks/train/00001.png … of the same pictures, and FOLDER/classes.txt, the
    names of the masks' values.

    Raises:
        UsageError: a count leaves a class empty, or the folder holds a split already.
    """
    for name, count in (("train", train), ("val", val)):
        if count < len(CLASS_NAMES):
            raise UsageError(f"{name}={count} scenes leave a class empty; draw {len(CLASS_NAMES)} or more")
    splits = [Path(kind, name) for kind in (("images", "masks") if masks else ("",)) for name in ("train", "val")]
    for split in splits:
        if (folder / split).exists():
            raise UsageError(f"{folder / split} exists already; draw the scenes into a fresh folder")
    for split in splits:
        for class_name in ("",) if masks else CLASS_NAMES:
            (folder / split / class_name).mkdir(parents=True)
    if masks:
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in SEGMENT_NAMES))
    chunk = 100
    jobs = [
        (str(folder), split, seed, masks, start, min(start + chunk, count))
        for split, count in (("train", train), ("val", val))
        for start in range(0, count, chunk)
    ]
    workers = workers or len(os.sched_getaffinity(0))
    drawn = 0

    def tell(job: tuple[str, str, int, bool, int, int]) -> None:
        nonlocal drawn
        drawn += job[5] - job[4]
        if progress is not None:
            progress(drawn, train + val)

    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            _write_some(*job)
            tell(job)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        pending = {pool.submit(_write_some, *job): job for job in jobs}
        for done in as_completed(pending):
            done.result()
            tell(pending[done])
