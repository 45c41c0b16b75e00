"""A labelled set of photo-like pictures, drawn with numpy and Pillow: what `coma demo` trains on.

A scene is a handful of pebbles on uneven ground, lit from one side. The class is the side that the light
comes from, one of eight. Colours, brightness, contrast, sizes, places, shapes and grain come from one
distribution for all classes, so the colour of a picture says nothing about its class; shading and shadows do,
and whoever is to paint a hidden patch of a pebble has to find out about them.

Legend: H, W pixels of the picture (colours come first, [3, H, W], which numpy works through faster); x, y
coordinates in shorter sides of the picture, from its centre.
"""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from coma.errors import UsageError

Field = NDArray[np.float32]

# Where the light comes from, anticlockwise from the right.
CLASS_NAMES = ("right", "top-right", "top", "top-left", "left", "bottom-left", "bottom", "bottom-right")

SIDE_PX = (96, 192)
JPEG_QUALITY = (75, 96)
SLANT = 0.75  # sine of the angle between the light and the line of sight
SPREAD = 0.6  # the light's direction varies over this share of its class's eighth of a turn
PEBBLES = (4, 9)
RADIUS = (0.1, 0.3)  # of a pebble, in shorter sides


def _noise(shape: tuple[int, int], cells: int, rng: np.random.Generator) -> Field:
    """Smooth noise [H, W], `cells` cells across the shorter side."""
    height, width = shape
    scale = cells / min(height, width)
    grid = rng.standard_normal((max(2, round(height * scale)) + 1, max(2, round(width * scale)) + 1))
    picture = Image.fromarray(grid.astype(np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC), np.float32)


def _colour(rng: np.random.Generator, value: float) -> Field:
    """One colour [3, 1, 1] of a natural palette: any hue, mostly muted, of the given brightness."""
    hue, saturation = rng.uniform(0, 6), rng.beta(1.5, 3.0) * 0.8
    wheel = np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    colour: Field = (value * (1 - saturation * (1 - wheel))).astype(np.float32)
    return colour[:, None, None]


def _ground(shape: tuple[int, int], light: Field, rng: np.random.Generator) -> Field:
    """Uneven ground [3, H, W] of two near colours, shaded as a surface of Lambert's."""
    clouds = np.clip(0.5 + 0.4 * _noise(shape, 3, rng), 0, 1)
    value = float(rng.uniform(0.35, 0.8))
    near = _colour(rng, value)
    far = 0.5 * near + 0.5 * _colour(rng, value)
    height = _noise(shape, int(rng.integers(5, 9)), rng) * np.float32(0.05 * min(shape))
    slope_y, slope_x = np.gradient(height)
    facing = (light[2] - light[0] * slope_x - light[1] * slope_y) / np.sqrt(1 + slope_x**2 + slope_y**2)
    shade = np.clip(0.25 + 0.9 * facing, 0.05, 1.3).astype(np.float32)
    ground: Field = (near + (far - near) * clouds) * shade
    return ground


def _put_pebble(picture: Field, x: Field, y: Field, light: Field, rng: np.random.Generator) -> None:
    """Lay an ellipsoid with its shadow and its highlight on the picture [3, H, W], in place."""
    radius = float(rng.uniform(*RADIUS))
    centre_x, centre_y = (float(c) for c in rng.uniform(-0.55, 0.55, 2))
    rows, columns = _near(y, centre_y, 2.0 * radius), _near(x, centre_x, 2.0 * radius)
    dx = (x[columns] - np.float32(centre_x))[None] / np.float32(radius)
    dy = (y[rows] - np.float32(centre_y))[:, None] / np.float32(radius)

    shadow = 1.25 - np.hypot(dx + light[0] * np.float32(0.75), dy + light[1] * np.float32(0.75))
    shadow = np.clip(shadow, 0, 0.85) * np.float32(rng.uniform(0.5, 0.75))

    turn, stretch = rng.uniform(0, 2 * np.pi), np.float32(rng.uniform(0.8, 1.25))
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    u, v = (dx * cos + dy * sin) * stretch, (dy * cos - dx * sin) / stretch
    squared = u * u + v * v
    # The normal of the ellipsoid, turned back into the picture's axes.
    across, along, up = u * stretch, v / stretch, np.sqrt(np.clip(1 - squared, 1e-3, 1))
    normal_x, normal_y = across * cos - along * sin, across * sin + along * cos
    facing = normal_x * light[0] + normal_y * light[1] + up * light[2]
    facing = np.clip(facing / np.sqrt(normal_x**2 + normal_y**2 + up**2), 0, 1)

    colour = _colour(rng, float(rng.uniform(0.35, 0.95)))
    gloss = np.float32(rng.uniform(0.0, 0.4))
    surface = colour * (0.12 + 0.95 * facing) + gloss * np.square(np.square(np.square(facing))) ** 3
    radius_px = np.float32(radius * min(len(x), len(y)))
    inside = np.clip((1 - np.sqrt(squared)) * radius_px, 0, 1)
    spot = picture[:, rows, columns]
    spot *= 1 - shadow * (1 - inside)
    spot += (surface - spot) * inside


def _near(positions: Field, centre: float, reach: float) -> slice:
    """The part of sorted positions within `reach` of the centre."""
    return slice(*np.searchsorted(positions, [centre - reach, centre + reach]))


def draw_scene(label: int, rng: np.random.Generator) -> Image.Image:
    """Draw one scene of class `CLASS_NAMES[label]`; every choice comes from `rng`."""
    height, width = (int(side) for side in rng.integers(*SIDE_PX, size=2, endpoint=True))
    short = min(height, width)
    y = ((np.arange(height) - height / 2) / short).astype(np.float32)
    x = ((np.arange(width) - width / 2) / short).astype(np.float32)
    angle = 2 * np.pi * (label + SPREAD * rng.uniform(-0.5, 0.5)) / len(CLASS_NAMES)
    light = np.array(  # towards the lamp; y points down
        [SLANT * np.cos(angle), -SLANT * np.sin(angle), np.sqrt(1 - SLANT**2)], dtype=np.float32
    )
    picture = _ground((height, width), light, rng)
    for _ in range(int(rng.integers(*PEBBLES))):
        _put_pebble(picture, x, y, light, rng)

    grain = np.float32(rng.uniform(0.004, 0.016)) * rng.standard_normal((height, width), dtype=np.float32)
    exposed = np.clip(picture * np.float32(rng.uniform(0.75, 1.1)) + grain, 0, 1)
    photo = Image.fromarray(np.ascontiguousarray((exposed * 255).astype(np.uint8).transpose(1, 2, 0)))
    return photo.filter(ImageFilter.BoxBlur(float(rng.uniform(0.2, 0.8))))


def _write_some(folder: str, split: str, seed: int, start: int, stop: int) -> None:
    for number in range(start, stop):
        label = number % len(CLASS_NAMES)
        # Keyed by what the picture is, not by a generator's history: any process draws any picture alike.
        rng = np.random.default_rng([seed, int(split == "val"), number])
        target = Path(folder) / split / CLASS_NAMES[label] / f"{number // len(CLASS_NAMES) + 1:05d}.jpg"
        draw_scene(label, rng).save(target, quality=int(rng.integers(*JPEG_QUALITY)))


def write_scenes(
    folder: Path,
    *,
    train: int = 2400,
    val: int = 600,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write FOLDER/train/<class>/00001.jpg … and FOLDER/val/…: the same files for the same seed and counts.

    `train` and `val` are numbers of pictures, spread evenly over the eight classes. `workers` processes draw
    them (None: one a core); `progress(drawn, in all)` is called now and then. UsageError if a count leaves a
    class empty or the folder holds a split already.
    """
    for name, count in (("train", train), ("val", val)):
        if count < len(CLASS_NAMES):
            raise UsageError(f"{name}={count} scenes leave a class empty; draw {len(CLASS_NAMES)} or more")
        if (folder / name).exists():
            raise UsageError(f"{folder / name} exists already; draw the scenes into a fresh folder")
    for name in ("train", "val"):
        for class_name in CLASS_NAMES:
            (folder / name / class_name).mkdir(parents=True)
    chunk = 100
    jobs = [
        (str(folder), split, seed, start, min(start + chunk, count))
        for split, count in (("train", train), ("val", val))
        for start in range(0, count, chunk)
    ]
    workers = workers or len(os.sched_getaffinity(0))
    drawn = 0

    def tell(job: tuple[str, str, int, int, int]) -> None:
        nonlocal drawn
        drawn += job[4] - job[3]
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
