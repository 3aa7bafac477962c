"""A network's first layers as one call of native code: convolution, ReLU and max pooling."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from adafuse_jax.kernels import build
from adafuse_jax.kernels.block import by_frequency, filled, panels
from adafuse_jax.ops import costs

TARGET = "adafuse_jax_stem"


class StemWeights(NamedTuple):
    """Of the convolution, its norm folded in; see `pack_stem`."""

    kernel: Float[Array, "panels k ki lanes"] | Float[Array, "panels 36 4i lanes"]
    bias: Float[Array, " lanes"]


def pack_stem(
    kernel: Float[np.ndarray, "k k i o"], bias: Float[np.ndarray, " o"], stride: int
) -> StemWeights:
    """Lays weights out: a row of the kernel reads pixels side by side.

    One of 7x7 and stride 2 is filtered (`kernels/stem.h`): where each pixel is four, two by two, it is one of
    4x4 and stride 1, whose weights are laid out by frequency.
    """
    size, (i, o) = len(kernel), kernel.shape[2:]
    if (size, stride) == (7, 2):
        # Tap 2 t + p of 8, the first of which is zero, reads the pixel p of the two at t.
        phases = np.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(4, 2, 4, 2, i, o)
        kernel = by_frequency(phases.transpose(0, 2, 1, 3, 4, 5).reshape(4, 4, 4 * i, o), 6)
    else:
        kernel = kernel.reshape(size, 1, -1, o)
    kernel, bias = panels(kernel, bias)
    return StemWeights(jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32))


def compact_stem(
    x: Float[Array, "n h w i"],
    weights: StemWeights,
    features: int,
    stride: int,
    pool: bool,
    level: str = "best",
) -> Float[Array, "n y x o"]:
    """max_pool(relu(conv(x))), on the CPU and without a gradient.

    The convolution is padded by half its kernel; the pooling, if any, is 3x3 of stride 2, padded by 1. One of
    7x7 and stride 2 makes whole tiles of 3x3 outputs NaN where its input is not finite.

    Args:
        x: float32.
        weights: from `pack_stem`, for this stride.
        features: outputs of the convolution, o.
        stride: of the convolution.
        pool: whether to pool.
        level: instructions to use, of `build.LEVELS`.

    Raises:
        UserError: for another level or type of x.
        RuntimeError: without native code (`build.load`).
    """
    level = build.checked(x, level)
    kernel = 7 if weights.kernel.shape[1] == 36 else weights.kernel.shape[1]
    size = [costs.conv_out(s, kernel, stride, kernel // 2) for s in x.shape[1:3]]
    if pool:
        size = [costs.conv_out(s, 3, 2, 1) for s in size]
    call = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct((len(x), *size, filled(features)), jnp.float32))
    numbers = {
        "kernel": kernel,
        "stride": stride,
        "features": features,
        "pool": pool,
        "level": level,
    }
    return call(x, *weights, **{name: np.int64(n) for name, n in numbers.items()})[..., :features]
