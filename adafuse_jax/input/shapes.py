"""Textured shapes on a torus: what `moving_shapes` is drawn with.

Lengths are shares of the image's side, angles are degrees, clockwise on the screen (x to the right, y
down), brightness is in [0, 1]. What leaves the image on one side enters on the other.
"""

import dataclasses
import math

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Thing:
    """A shape and its path: `places` (T, 4) holds centre x, centre y, radius and angle of each frame."""

    shape: str
    places: np.ndarray


def _polygon(*corners: tuple[float, float]) -> np.ndarray:
    """Corners scaled so that the farthest lies at distance 1 of the origin."""
    points = np.array(corners, np.float64)
    return points / np.hypot(*points.T).max()


def _regular(count: int, inner: float = 1.0) -> np.ndarray:
    """A regular polygon; every second corner lies at the distance `inner`."""
    angles = 2 * np.pi * np.arange(count) / count
    radii = np.where(np.arange(count) % 2, inner, 1.0)
    return _polygon(*zip(radii * np.cos(angles), radii * np.sin(angles), strict=True))


OUTLINES = {
    "circle": _regular(40),
    "square": _regular(4),
    "triangle": _regular(3),
    "star": _regular(10, inner=0.5),
    "bar": _polygon((-1, -0.25), (1, -0.25), (1, 0.25), (-1, 0.25)),
    "arrow": _polygon((-1, -0.2), (0.1, -0.2), (0.1, -0.7), (1, 0), (0.1, 0.7), (0.1, 0.2), (-1, 0.2)),
    "ell": _polygon((-0.6, -1), (-0.1, -1), (-0.1, 0.5), (0.7, 0.5), (0.7, 1), (-0.6, 1)),
}
SOLIDS = ("circle", "square", "triangle", "star")
POINTERS = ("bar", "arrow", "ell")  # their angle is plain to see


def tint(rng: np.random.Generator, strength: float) -> np.ndarray:
    """A random hue: (3,) of length `strength` and mean 0, to be added to a brightness."""
    hue = rng.standard_normal(3)
    hue -= hue.mean()
    return strength * hue / np.linalg.norm(hue)


def texture(rng: np.random.Generator, size: int, colour: np.ndarray, strength: float) -> np.ndarray:
    """Soft coloured blobs, checks or stripes around a colour (3,): float32 (size, size, 3)."""
    kind = rng.integers(3)
    if kind == 0:
        pattern = cv2.resize(_grid(rng, 3), (size, size), interpolation=cv2.INTER_CUBIC)
    elif kind == 1:
        pattern = cv2.resize(_grid(rng, 1), (size, size), interpolation=cv2.INTER_NEAREST)[..., None]
    else:
        heading, phase = rng.uniform(0, 2 * np.pi, 2)
        steps = np.linspace(-1, 1, size, dtype=np.float32) * np.pi * rng.uniform(2, 4)
        wave = steps * np.cos(heading) + (steps * np.sin(heading) + phase)[:, None]
        pattern = 1.4 * np.sin(wave.astype(np.float32))[..., None]
    return colour.astype(np.float32) + np.float32(strength) * pattern


def _grid(rng: np.random.Generator, channels: int) -> np.ndarray:
    cells = rng.integers(4, 7)
    return rng.standard_normal((cells, cells, channels), np.float32)


def sprite(rng: np.random.Generator, thing: Thing, colour: np.ndarray, size: int) -> np.ndarray:
    """The thing at its largest, upright: float32 (S, S, 4) of colour times opacity, and opacity.

    `size` is the image's side in pixels. The thing's radius in the sprite is rounded up to whole pixels,
    and the sprite reaches one pixel beyond it.
    """
    radius = math.ceil(thing.places[:, 2].max() * size)
    middle = radius + 1
    # Filled at four times the size and averaged: OpenCV's own smooth edges lie half a pixel off.
    fine = np.zeros((4 * (2 * middle + 1), 4 * (2 * middle + 1)), np.uint8)
    outline = OUTLINES[thing.shape] * 4 * radius + 4 * (middle + 0.5) - 0.5
    cv2.fillPoly(fine, [np.rint(outline * 256).astype(np.int32)], 255, shift=8)
    mask = cv2.resize(fine, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    opacity = (mask / np.float32(255))[..., None]
    return np.concatenate([texture(rng, len(mask), colour, 0.1) * opacity, opacity], axis=-1)


def paint(frame: np.ndarray, picture: np.ndarray, place: np.ndarray) -> None:
    """Lays a sprite over `frame` (H, W, 3) in place.

    Args:
        frame: float32 (H, W, 3), H = W.
        picture: from `sprite`.
        place: centre x, centre y, radius and angle of the thing, a row of `Thing.places`.
    """
    x, y, radius, angle = place
    side, middle = len(frame), len(picture) // 2
    half = math.ceil(radius * side)
    left, top, width = math.floor(x * side) - half, math.floor(y * side) - half, 2 * half + 2
    turn, scale = math.radians(angle), radius * side / (middle - 1)
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    matrix = np.array(
        [
            [cos, -sin, x * side - left - (cos - sin) * middle],
            [sin, cos, y * side - top - (sin + cos) * middle],
        ]
    )
    patch = cv2.warpAffine(picture, matrix, (width, width), flags=cv2.INTER_LINEAR)
    where = (np.arange(top, top + width)[:, None] % side, np.arange(left, left + width) % side)
    frame[where] = frame[where] * (1 - patch[..., 3:]) + patch[..., :3]
