"""Two convolutions with fusion in between, as one call of native code that computes what is needed alone."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from adafuse_jax.errors import UserError, unknown
from adafuse_jax.kernels import build
from adafuse_jax.ops import actions as act
from adafuse_jax.ops import costs

PANEL, GROUP = 64, 16  # PANEL and LANE_GROUP of compact.cc
# Instructions to use; "best" is what the running CPU has.
LEVELS = ("best", "baseline", "avx2", "avx512")


class Weights(NamedTuple):
    """Of the two convolutions, their norms folded in, laid out for the native code; see `pack`."""

    kernel1: Float[Array, "taps1 i c"]
    bias1: Float[Array, " c"]
    kernel2: Float[Array, "panels taps2 c lanes"]
    bias2: Float[Array, " lanes"]


class Before(NamedTuple):
    """What `compact_step` remembers of the frame before; all zeros: there was none.

    Attributes:
        x: what the first convolution read.
        y: its kept channels, one after the other.
        actions: one more than their codes.
    """

    x: Float[Array, "b h w i"]
    y: Float[Array, "b y x columns"]
    actions: Int8[Array, "b c"]


def pack(
    kernel1: Float[np.ndarray, "k1 k1 i c"],
    bias1: Float[np.ndarray, " c"],
    kernel2: Float[np.ndarray, "k2 k2 c o"],
    bias2: Float[np.ndarray, " o"],
) -> Weights:
    """Lays weights out: the outputs of the second convolution in panels of 64, the last filled up with 0."""
    taps1, taps2 = math.prod(kernel1.shape[:2]), math.prod(kernel2.shape[:2])
    c, o = kernel2.shape[2:]
    fill = -o % PANEL
    panels = np.pad(kernel2.reshape(taps2, c, o), ((0, 0), (0, 0), (0, fill)))
    panels = np.moveaxis(panels.reshape(taps2, c, -1, PANEL), 2, 0)
    arrays = kernel1.reshape(taps1, -1, c), bias1, panels, np.pad(bias2, (0, fill))
    return Weights(*(jnp.asarray(a, jnp.float32) for a in arrays))


def codes(policy: Float[Array, "*b c actions"], actions: tuple[str, ...] = act.ALL) -> Int8[Array, "*b c"]:
    """A one-hot policy as 0 for skip, 1 for reuse, 2 for keep."""
    return jnp.asarray([act.ALL.index(a) for a in actions], jnp.int8)[jnp.argmax(policy, -1)]


def compact_pair(
    x: Float[Array, "b t h w i"],
    weights: Weights,
    actions: Int8[Array, "b t c"],
    features: int,
    strides: tuple[int, int] = (1, 1),
    level: str = "best",
) -> Float[Array, "b t y x o"]:
    """conv2(fuse(relu(conv1(x)))), Eq. 3 by `actions`, on the CPU and without a gradient.

    Both convolutions are padded by half their kernels. What isn't finite in a channel stays in it: unlike
    0 * inf in the dense computation, a skipped one can't make others NaN.

    Args:
        x: float32.
        weights: from `pack`.
        actions: from `codes`.
        features: outputs of the second convolution, o.
        strides: of the two.
        level: instructions to use, of `LEVELS`.

    Raises:
        UserError: for another level or type of x.
        RuntimeError: without native code (`build.load`).
    """
    none = Before(
        jnp.zeros((0, *x.shape[2:])), jnp.zeros((0, *_between(x, weights, strides))), actions[:0, 0]
    )
    return _call(x, weights, actions, none, features, strides, level)[0]


def before_first(x: Float[Array, "b h w i"], weights: Weights, strides: tuple[int, int] = (1, 1)) -> Before:
    """What there is before the first frame of streams."""
    y = jnp.zeros((len(x), *_between(x[:, None], weights, strides)))
    return Before(jnp.zeros_like(x), y, jnp.zeros((len(x), len(weights.bias1)), jnp.int8))


def compact_step(
    x: Float[Array, "b h w i"],
    weights: Weights,
    actions: Int8[Array, "b c"],
    before: Before,
    features: int,
    strides: tuple[int, int] = (1, 1),
    level: str = "best",
) -> tuple[Before, Float[Array, "b y x o"]]:
    """`compact_pair` one frame at a time: what is reused and wasn't computed at the frame before is now.

    Args:
        x: see `compact_pair`; here and in the following of one frame.
        weights: from `pack`.
        actions: from `codes`.
        before: from `before_first`, or the step before.
        features: outputs of the second convolution, o.
        strides: of the two.
        level: instructions to use, of `LEVELS`.

    Raises:
        UserError: for another level or type of x.
        RuntimeError: without native code (`build.load`).
    """
    fused, y = _call(x[:, None], weights, actions[:, None], before, features, strides, level)
    return Before(x, y[:, 0], actions + jnp.int8(1)), fused[:, 0]


def _sizes(x: Array, weights: Weights, strides: tuple[int, int]) -> list[tuple[int, int]]:
    """Height and width after each convolution, and before them."""
    sizes = [x.shape[2:4]]
    for kernel, stride in zip(_kernels(weights), strides, strict=True):
        sizes.append(tuple(costs.conv_out(s, kernel, stride, kernel // 2) for s in sizes[-1]))
    return sizes


def _kernels(weights: Weights) -> list[int]:
    return [math.isqrt(weights.kernel1.shape[0]), math.isqrt(weights.kernel2.shape[1])]


def _between(x: Array, weights: Weights, strides: tuple[int, int]) -> tuple[int, int, int]:
    """Shape of a frame between the two convolutions."""
    return *_sizes(x, weights, strides)[1], _padded(len(weights.bias1))


def _padded(channels: int) -> int:
    return channels + -channels % GROUP


def _call(x, weights, actions, before, features, strides, level):
    """The fused map of the frames, and the columns between the convolutions."""
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    if x.dtype != jnp.float32:
        raise UserError(f"x: expected float32, found {x.dtype}")
    if not build.load():
        raise RuntimeError("compact execution: no native code, see the log")
    between = _between(x, weights, strides)
    shapes = (
        (*x.shape[:2], *_sizes(x, weights, strides)[2], _padded(features)),
        (*x.shape[:2], *between),
        (len(before.x), *between),
    )
    call = jax.ffi.ffi_call(build.TARGET, [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes])
    kernels = _kernels(weights)
    numbers = {
        "kernel1": kernels[0],
        "stride1": strides[0],
        "kernel2": kernels[1],
        "stride2": strides[1],
        "features": features,
        "level": LEVELS.index(level),
    }
    numbers = {name: np.int64(n) for name, n in numbers.items()}
    fused, y, _ = call(x, *weights, actions, *before, **numbers)
    return fused[..., :features], y
