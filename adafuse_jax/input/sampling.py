"""Which T frames of a clip the model sees (reference.md section 3, "Frames"); all indices are 0-based.

`draw(n)` is the source of chance: a uniform integer in 0..n-1. The bound methods `Generator.integers`,
`RandomState.randint` and `Random.randrange` all are one; the published tables come from `randint`.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from adafuse_jax.errors import UserError

Draw = Callable[[int], int]


def validation_indices(num_frames: int, T: int) -> Int[np.ndarray, " T"]:
    """The middle frame of each of T equal segments; a clip of T frames or fewer repeats its last frame.

    For N > T frame i is int(N/T/2 + N/T*i), in floating point as published: where the exact value is an
    integer, rounding may leave the frame before it.

    Args:
        num_frames: N, frames in the clip.
        T: frames wanted.

    Raises:
        UserError: for N or T below 1.
    """
    _check(num_frames, T)
    if num_frames > T:
        return _segment_middles(num_frames, T)
    return _first_frames(num_frames, T)


def spread_indices(num_frames: int, T: int) -> Int[np.ndarray, " T"]:
    """As `validation_indices`, but a clip shorter than T repeats each of its frames evenly.

    The published code samples its test split so, its validation split as `validation_indices`.

    Raises:
        UserError: for N or T below 1.
    """
    _check(num_frames, T)
    return _segment_middles(num_frames, T)


def training_indices(num_frames: int, T: int, draw: Draw) -> Int[np.ndarray, " T"]:
    """A random frame of each of T segments of N // T frames; frames after the last segment are never drawn.

    A clip shorter than T gives all its frames in order and repeats the last.

    Args:
        num_frames: N, frames in the clip.
        T: frames wanted.
        draw: `draw(n)` is a uniform integer in 0..n-1; called T times, in the order of the segments.

    Raises:
        UserError: for N or T below 1.
    """
    _check(num_frames, T)
    segment = num_frames // T
    if segment > 0:
        return np.array([i * segment + int(draw(segment)) for i in range(T)])
    return _first_frames(num_frames, T)


def _segment_middles(num_frames: int, T: int) -> Int[np.ndarray, " T"]:
    segment = num_frames / T
    return (segment / 2 + segment * np.arange(T)).astype(int)


def _first_frames(num_frames: int, T: int) -> Int[np.ndarray, " T"]:
    return np.minimum(np.arange(T), num_frames - 1)


def _check(num_frames: int, T: int) -> None:
    if T < 1:
        raise UserError(f"frames per clip (T): expected at least 1, found {T}")
    if num_frames < 1:
        raise UserError(f"frames in the clip: expected at least 1, found {num_frames}")
