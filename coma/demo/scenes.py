"""Labelled photo-like pictures, drawn with numpy and Pillow: what `coma demo` trains on.

A scene is one object with a patterned surface, lit from a side, over a cloudy background with plain objects
as clutter. The class is the pattern alone: which way its stripes run and how fine they are, or checks, or
rings. Palette, brightness, contrast, size, place, silhouette, background, grain and blur come from one
distribution for all classes, so that colour tells nothing about them; structure does, and it is what one needs
to know of the visible patches to paint the hidden ones.

Legend: H, W pixels of the picture (colours come first, [3, H, W], which numpy works through faster);
u, v coordinates on the object's surface, in periods of its pattern.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Field = NDArray[np.floating]  # float32 throughout: half the time of float64
Pattern = Callable[[Field, Field, np.random.Generator], Field]

SIDE_PX = (90, 260)
ASPECT = (0.75, 1.33)
PERIOD = (0.12, 0.2)  # of a coarse pattern, in shorter sides of the picture
RADIUS = (0.45, 0.7)  # of the object, in shorter sides
JPEG_QUALITY = (72, 96)


# -- patterns: [H, W] coordinates in periods → [H, W] heights in 0..1


def _step(height: Field, rng: np.random.Generator) -> Field:
    """Turn a wave in -1..1 into two plateaus: soft or hard edges, a narrow or a wide ridge."""
    steepness, level = rng.uniform(1.5, 6.0), rng.uniform(-0.35, 0.35)
    return np.clip(0.5 + steepness * (height - np.float32(level)) / 2, 0, 1).astype(np.float32)


def _wave(phase: Field) -> Field:
    wave: Field = np.sin(np.float32(2 * np.pi) * phase)
    return wave


def _stripes(u: Field, v: Field, rng: np.random.Generator) -> Field:
    return _step(_wave(u), rng)


def _checks(u: Field, v: Field, rng: np.random.Generator) -> Field:
    return _step(1.6 * _wave(u * np.float32(0.6)) * _wave(v * np.float32(0.6)), rng)


def _rings(u: Field, v: Field, rng: np.random.Generator) -> Field:
    off_u, off_v = rng.uniform(-1.0, 1.0, 2).astype(np.float32)
    return _step(_wave(np.sqrt((u - off_u) ** 2 + (v - off_v) ** 2)), rng)


@dataclass(frozen=True)
class Kind:
    """A class: a pattern, its turn in degrees (None: any), and its period as a share of the coarse one."""

    pattern: Pattern
    turn_deg: float | None = None
    period: float = 1.0


KINDS: dict[str, Kind] = {
    "columns": Kind(_stripes, 0),
    "rising": Kind(_stripes, 45),
    "rows": Kind(_stripes, 90),
    "falling": Kind(_stripes, 135),
    "fine-columns": Kind(_stripes, 0, 0.5),
    "fine-rising": Kind(_stripes, 45, 0.5),
    "fine-rows": Kind(_stripes, 90, 0.5),
    "fine-falling": Kind(_stripes, 135, 0.5),
    "checks": Kind(_checks),
    "rings": Kind(_rings),
}
CLASS_NAMES: tuple[str, ...] = tuple(KINDS)
PLAIN = "plain"
SEGMENT_NAMES: tuple[str, ...] = ("background", PLAIN, *CLASS_NAMES)
"""Classes of a mask's pixels: what lies behind, plain clutter, and the object's pattern."""
TURN_DEG = 6.0  # standard deviation of how a class lies


# -- the scene


def _noise(shape: tuple[int, ...], cells: int, rng: np.random.Generator) -> Field:
    """Smooth noise [H, W] of unit variance before smoothing, `cells` cells across the shorter side."""
    height, width = shape
    scale = cells / min(height, width)
    grid = rng.standard_normal((max(2, round(height * scale)) + 1, max(2, round(width * scale)) + 1))
    picture = Image.fromarray(grid.astype(np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)


def _colour(rng: np.random.Generator, value: float) -> Field:
    """One colour [3, 1, 1] of a natural palette: any hue, mostly muted, of the given brightness."""
    hue, saturation = rng.uniform(0, 6), rng.beta(1.5, 3.0) * 0.4
    wheel: Field = np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return (value * (1 - saturation * (1 - wheel))).astype(np.float32)[:, None, None]


def _mix(first: Field, second: Field, share: Field) -> Field:
    """Blend two colours [3, 1, 1] or pictures [3, H, W] by a share [H, W]."""
    return first + (second - first) * share


def _background(shape: tuple[int, int], y: Field, rng: np.random.Generator) -> Field:
    """Clouds or ground [3, H, W]: fractal noise between two near colours, with a horizon half of the time."""
    fine = float(rng.uniform(0.2, 1.0))
    clouds = _noise(shape, 2, rng) + 0.6 * _noise(shape, 5, rng) + fine * 0.45 * _noise(shape, 22, rng)
    value = float(rng.uniform(0.25, 0.85))
    near = _colour(rng, value)
    far = 0.5 * near + 0.5 * _colour(rng, float(np.clip(value + rng.uniform(-0.4, 0.4), 0.1, 1)))
    picture = _mix(near, far, np.clip(0.5 + 0.45 * clouds, 0, 1).astype(np.float32))
    if rng.random() < 0.5:
        edge = np.float32(rng.uniform(-0.3, 0.3))
        ground = np.clip((y + np.float32(0.03) * clouds - edge) * 30, 0, 1).astype(np.float32)
        tint = _colour(rng, float(rng.uniform(0.5, 1.0)))
        picture = picture * _mix(np.ones_like(tint), tint, ground)
    return picture


def _silhouette(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Distance from the object's centre [H, W], 1 on its rim: an ellipse, a cushion, a tile or a pebble."""
    power = float(rng.choice([2.0, 2.0, 3.0, 6.0]))
    if power == 2.0:
        rim = np.sqrt(u * u + v * v)
        lobes, depth, turn = int(rng.integers(2, 6)), float(rng.uniform(0, 0.09)), float(rng.uniform(0, 6))
        return rim * (1 + depth * np.sin(np.arctan2(v, u) * lobes + turn))
    return (np.abs(u) ** power + np.abs(v) ** power) ** (1 / power)


def _place(
    x: Field, y: Field, radius: float, reach: float, angle: float, rng: np.random.Generator
) -> tuple[Field, Field]:
    """Coordinates [H, W] of an object turned by an angle and stretched a little, 1 at its radius."""
    centre_x, centre_y = rng.uniform(-reach, reach, 2).astype(np.float32)
    stretch = np.float32(rng.uniform(0.9, 1.1))
    cos, sin = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
    dx, dy = x - centre_x, y - centre_y
    return (cos * dx + sin * dy) * stretch, (cos * dy - sin * dx) / stretch


def _blurred(field: Field, radius_px: float, away_px: tuple[int, int]) -> Field:
    """Blur a field [H, W] in 0..1 and move it by (-x, -y) pixels, with nothing beyond the edges."""
    picture = Image.fromarray((field * 255).astype(np.uint8))
    x, y = away_px
    moved = picture.crop((x, y, x + picture.width, y + picture.height))
    return np.asarray(moved.filter(ImageFilter.BoxBlur(radius_px)), dtype=np.float32) / 255


def _covered(rim: Field, radius_px: float) -> NDArray[np.bool_]:
    """Return the pixels [H, W] that an object covers at least by half."""
    covered: NDArray[np.bool_] = (1 - rim) * np.float32(radius_px) >= 0.5
    return covered


def _put(
    picture: Field, surface: Field, rim: Field, radius_px: float, light: tuple[float, float], rng: np.random.Generator
) -> Field:
    """Lay a surface [3, H, W] inside `rim` < 1 over the picture, with its shadow and its rounded shading."""
    inside = np.clip((1 - rim) * np.float32(radius_px), 0, 1).astype(np.float32)
    shift = max(1, round(radius_px * rng.uniform(0.06, 0.16)))
    shadow = _blurred(inside, shift * 0.8, (round(light[0] * shift), round(light[1] * shift)))
    darkness = np.float32(rng.uniform(0.25, 0.6))
    return _mix(picture * (1 - darkness * shadow), surface, inside)


def draw_scene(label: int, rng: np.random.Generator) -> Image.Image:
    """Draw one scene of class `CLASS_NAMES[label]`; every choice comes from `rng`."""
    return draw_segmented_scene(label, rng)[0]


def draw_segmented_scene(label: int, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Draw a scene as `draw_scene` does, and its mask of the same size: indices into `SEGMENT_NAMES`."""
    kind = KINDS[CLASS_NAMES[label]]
    side = SIDE_PX[0] + (SIDE_PX[1] - SIDE_PX[0]) * rng.uniform() ** 1.5
    aspect = np.sqrt(rng.uniform(*ASPECT))
    height, width = (int(np.clip(round(side * f), *SIDE_PX)) for f in (1 / aspect, aspect))
    short = min(height, width)
    y, x = np.meshgrid(
        (np.arange(height, dtype=np.float32) - height / 2) / short,
        (np.arange(width, dtype=np.float32) - width / 2) / short,
        indexing="ij",
    )
    y, x = y.astype(np.float32), x.astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    light = (float(np.cos(angle)), float(np.sin(angle)))  # towards the lamp, x and y
    slope = light[0] * x + light[1] * y  # -0.7..0.7 along the light

    picture = _background((height, width), y, rng)
    segments = np.zeros((height, width), np.uint8)
    for _ in range(int(rng.integers(0, 3))):  # plain clutter
        radius = float(rng.uniform(0.08, 0.25))
        u, v = _place(x, y, radius, 0.5, float(rng.uniform(0, 2 * np.pi)), rng)
        rim = _silhouette(u, v, rng)
        tint = _colour(rng, float(rng.uniform(0.2, 0.95)))
        surface: Field = tint * (1.0 - 0.25 * np.clip(rim, 0, 1.2) ** 2 + 0.3 * slope)
        picture = _put(picture, surface, rim, radius * short, light, rng)
        segments[_covered(rim, radius * short)] = SEGMENT_NAMES.index(PLAIN)

    radius = float(rng.uniform(*RADIUS))
    turn_deg = rng.uniform(0, 360) if kind.turn_deg is None else rng.normal(kind.turn_deg, TURN_DEG)
    u, v = _place(x, y, radius, max(0.05, 0.5 - 0.75 * radius), float(np.deg2rad(turn_deg)), rng)
    rim = _silhouette(u, v, rng)
    bulge = np.float32(rng.uniform(0.0, 0.35)) * np.clip(rim, 0, 1.2) ** 2
    periods, crumple = (np.float32(radius / (kind.period * rng.uniform(*PERIOD))), np.float32(rng.uniform(0.02, 0.14)))
    phase_u, phase_v = rng.uniform(0, 1, 2).astype(np.float32)
    centred = kind.pattern is _rings
    surface_u = u * (1 + bulge) * periods + crumple * _noise(u.shape, 4, rng) + (0 if centred else phase_u)
    surface_v = v * (1 + bulge) * periods + crumple * _noise(u.shape, 4, rng) + (0 if centred else phase_v)
    heights = kind.pattern(surface_u, surface_v, rng)
    if rng.random() < 0.5:
        heights = 1 - heights

    value = float(rng.uniform(0.3, 0.95))
    first = _colour(rng, value)
    contrast = float(rng.uniform(0.18, 0.6)) * (1 if value < 0.55 else -1)
    second = np.clip(0.5 * first + 0.5 * _colour(rng, value) + contrast, 0.02, 1).astype(np.float32)
    colour = _mix(first, second, heights)
    relief: Field = np.zeros_like(heights)
    relief[:-1, :-1] = light[0] * (heights[:-1, :-1] - heights[:-1, 1:])
    relief[:-1, :-1] += light[1] * (heights[:-1, :-1] - heights[1:, :-1])
    shade = 1.08 - 0.42 * np.clip(rim, 0, 1.1) ** 2 + 0.5 * slope + np.float32(rng.uniform(0, 0.5)) * relief
    surface = colour * shade
    picture = _put(picture, surface, rim, radius * short, light, rng)
    segments[_covered(rim, radius * short)] = SEGMENT_NAMES.index(CLASS_NAMES[label])

    exposure = np.float32(rng.uniform(0.75, 1.15)) * (1 + np.float32(rng.uniform(0.1, 0.5)) * slope)
    grain = np.float32(rng.uniform(0.005, 0.035)) * rng.standard_normal(y.shape, dtype=np.float32)
    lit = np.clip(picture * exposure + grain, 0, 1)
    photo = Image.fromarray(np.ascontiguousarray((lit * 255).astype(np.uint8).transpose(1, 2, 0)))
    return photo.filter(ImageFilter.BoxBlur(float(rng.uniform(0.0, 0.9)) * short / 150)), Image.fromarray(segments)
