"""Colour jitter of a clip: every frame gets the same one.

All four changes are linear in the colour, so together they are one matrix: a clip is read once, and rounded
and cut to 0..255 once, at the end (in OpenCV's whole-number arithmetic, right within one level and ten
times faster than in floating point). Ranges and meaning follow torchvision's ColorJitter, save that hue
turns in YIQ, where brightness stays, and contrast is about the mean of the clip instead of each frame's:
else a clip would flicker.

RandAugment is left out, as no library serves: albumentations is no longer maintained and its successor is
AGPL, imgaug rests since 2020, and the others rest on PyTorch or TensorFlow (November 2026).
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_LUMA = _YIQ[0]


def jitter(
    clip: UInt8[np.ndarray, "T H W 3"], strengths: Sequence[float], uniform: Callable[[float, float], float]
) -> UInt8[np.ndarray, "T H W 3"]:
    """A random change of brightness, contrast, saturation and hue.

    Args:
        clip: in RGB.
        strengths: of the four, 0 for no change. The factors of the first three are drawn from 1 - strength
            to 1 + strength, for strengths up to 1; the hue turns by up to its strength in either
            direction, as a share of the circle of hues, for strengths up to 0.5.
        uniform: `uniform(low, high)` is a uniform number between the two; called four times.
    """
    *factors, turn = (
        uniform(centre - s, centre + s) for centre, s in zip((1, 1, 1, 0), strengths, strict=True)
    )
    return change(clip, *factors, turn)


def change(
    clip: UInt8[np.ndarray, "T H W 3"], brightness: float, contrast: float, saturation: float, turn: float
) -> UInt8[np.ndarray, "T H W 3"]:
    """Changes the colours of a clip in RGB.

    Args:
        clip: in RGB.
        brightness: factor of every colour.
        contrast: factor of the distance from the mean luma of the clip.
        saturation: factor of the distance from the pixel's own luma.
        turn: of the hue, as a share of the circle.
    """
    rows = np.ascontiguousarray(clip).reshape(-1, clip.shape[2], 3)
    mean = brightness * _LUMA @ cv2.mean(rows)[:3]
    # Neither of the last two changes grey, so the shift of the contrast passes them as it is.
    matrix = brightness * contrast * (_hue(turn) @ _saturation(saturation))
    shift = np.full((3, 1), (1 - contrast) * mean)
    return cv2.transform(rows, np.hstack([matrix, shift])).reshape(clip.shape)


def _saturation(factor: float) -> Float[np.ndarray, "3 3"]:
    return factor * np.eye(3) + (1 - factor) * _LUMA


def _hue(turn: float) -> Float[np.ndarray, "3 3"]:
    """Turns the two axes of colour in YIQ."""
    cos, sin = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)
    rotation = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    return np.linalg.solve(_YIQ, rotation @ _YIQ)
