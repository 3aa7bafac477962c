"""Which T frames of a clip the model sees; all indices are 0-based.

Uniform sampling, as published (reference.md section 3, "Frames"), spreads them over the whole clip. Dense
sampling takes them from a window of 64 frames: Wang et al., "Non-local Neural Networks", CVPR 2018, section
4.1; here as the released code of TSM has it (ops/dataset.py, dense_sample).

`draw(n)` is the source of chance: a uniform integer in 0..n-1. The bound methods `Generator.integers`,
`RandomState.randint` and `Random.randrange` all are one; the published tables come from `randint`.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from adafuse_jax.errors import UserError

Draw = Callable[[int], int]

WINDOW = 64  # frames that dense sampling spans, or T where that is more


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


def shifted_indices(num_frames: int, T: int, count: int) -> Int[np.ndarray, "count T"]:
    """Several uniform samplings of one clip, the first of which is `validation_indices`.

    Sampling k takes of each of the T segments the frame at the share (1/2 + k/count) mod 1 of it. Of two,
    the second so takes the first frame of each segment, as TSM's two-clip test does. A clip of T frames
    or fewer is sampled alike each time.

    Args:
        num_frames: N, frames in the clip.
        T: frames wanted.
        count: samplings.

    Raises:
        UserError: for N, T or the count below 1.
    """
    _check(num_frames, T, count)
    if num_frames <= T:
        return np.tile(_first_frames(num_frames, T), (count, 1))
    return np.stack([_at_share(num_frames, T, (0.5 + k / count) % 1) for k in range(count)])


def dense_training_indices(num_frames: int, T: int, draw: Draw) -> Int[np.ndarray, " T"]:
    """Every (64 // T)-th frame of a random window of 64; a clip that ends within it starts over.

    TSM's code never draws the last of the windows; this does.

    Args:
        num_frames: N, frames in the clip.
        T: frames wanted; above 64 the window is T frames long.
        draw: `draw(n)` is a uniform integer in 0..n-1; called once.

    Raises:
        UserError: for N or T below 1.
    """
    _check(num_frames, T)
    return _window(num_frames, T, int(draw(_num_windows(num_frames, T))))


def dense_indices(num_frames: int, T: int, count: int) -> Int[np.ndarray, "count T"]:
    """Windows as `dense_training_indices` draws them, evenly spaced from the first to the last.

    TSM tests on ten. A single window is the middle one.

    Args:
        num_frames: N, frames in the clip.
        T: frames wanted.
        count: windows.

    Raises:
        UserError: for N, T or the count below 1.
    """
    _check(num_frames, T, count)
    last = _num_windows(num_frames, T) - 1
    starts = [last // 2] if count == 1 else np.linspace(0, last, count).astype(int)
    return np.stack([_window(num_frames, T, start) for start in starts])


def _num_windows(num_frames: int, T: int) -> int:
    return max(1, num_frames - max(WINDOW, T) + 1)


def _window(num_frames: int, T: int, start: int) -> Int[np.ndarray, " T"]:
    return (start + max(1, WINDOW // T) * np.arange(T)) % num_frames


def _segment_middles(num_frames: int, T: int) -> Int[np.ndarray, " T"]:
    return _at_share(num_frames, T, 0.5)


def _at_share(num_frames: int, T: int, share: float) -> Int[np.ndarray, " T"]:
    """The frame at a share in [0, 1) of each of T equal segments."""
    segment = num_frames / T
    return (segment * share + segment * np.arange(T)).astype(int)


def _first_frames(num_frames: int, T: int) -> Int[np.ndarray, " T"]:
    return np.minimum(np.arange(T), num_frames - 1)


def _check(num_frames: int, T: int, count: int = 1) -> None:
    if T < 1:
        raise UserError(f"frames per clip (T): expected at least 1, found {T}")
    if num_frames < 1:
        raise UserError(f"frames in the clip: expected at least 1, found {num_frames}")
    if count < 1:
        raise UserError(f"samplings of a clip: expected at least 1, found {count}")
