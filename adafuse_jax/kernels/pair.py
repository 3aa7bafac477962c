"""Two convolutions with fusion in between, as one call of native code that computes what is needed alone."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from adafuse_jax.errors import UserError, unknown
from adafuse_jax.kernels import build
from adafuse_jax.kernels.build import LEVELS
from adafuse_jax.ops import actions as act
from adafuse_jax.ops import costs

PANEL, GROUP = 64, 16  # PANEL and LANE_GROUP of compact.cc
TARGET = "adafuse_jax_compact_pair"


class Weights(NamedTuple):
    """Of the two convolutions, their norms folded in, laid out for the native code; see `pack`."""

    kernel1: Float[Array, "taps1 i c"]
    bias1: Float[Array, " c"]
    kernel2: Float[Array, "panels taps2 c lanes"]
    bias2: Float[Array, " lanes"]


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
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    if x.dtype != jnp.float32:
        raise UserError(f"x: expected float32, found {x.dtype}")
    if not build.load():
        raise RuntimeError("compact_pair: no native code, see the log")
    kernels = [math.isqrt(weights.kernel1.shape[0]), math.isqrt(weights.kernel2.shape[1])]
    sizes = [x.shape[2:4]]
    for kernel, stride in zip(kernels, strides, strict=True):
        sizes.append(tuple(costs.conv_out(s, kernel, stride, kernel // 2) for s in sizes[-1]))
    between, out = (
        jax.ShapeDtypeStruct((*x.shape[:2], *size, channels + -channels % GROUP), jnp.float32)
        for size, channels in zip(sizes[1:], (len(weights.bias1), features), strict=True)
    )
    call = jax.ffi.ffi_call(TARGET, (out, between))
    numbers = {
        "kernel1": kernels[0],
        "stride1": strides[0],
        "kernel2": kernels[1],
        "stride2": strides[1],
        "features": features,
        "level": LEVELS.index(level),
    }
    fused, _ = call(x, *weights, actions, **{name: np.int64(n) for name, n in numbers.items()})
    return fused[..., :features]
