"""The convolutions before and after a fusion on a GPU, computing no more than the policies ask for.

conv2(fuse(relu(conv1(x)))) as two Pallas kernels (Triton), each an implicit matrix product per frame, tile of
pixels and tile of outputs; all frames of all clips are one launch. The first computes the columns that
`kernels.columns` lists, and its inputs are all channels. The second goes over the channels that aren't
skipped alone, first those kept, in the frame's own columns, then those reused, where they lie among the
columns of the frame before. Which channels are active is data on the device: nothing waits for the host, and
a model is compiled once for all policies.

On a CPU Pallas interprets the kernels, for tests. They have never run on a GPU: what was checked without one
is in benchmarks/README.md.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from adafuse_jax.errors import UserError
from adafuse_jax.kernels.columns import columns_of

_DTYPES = jnp.float32, jnp.bfloat16


class Tile(NamedTuple):
    """How the work is cut: powers of two, at least 16.

    Attributes:
        pixels: of a frame, that a program computes.
        outputs: channels that it computes.
        inputs: channels that it reads at a time, of one tap.
        warps: of 32 threads.
        stages: loads under way.
    """

    pixels: int = 64
    outputs: int = 64
    inputs: int = 32
    warps: int = 4
    stages: int = 3


TILE = Tile()


class PairWeights(NamedTuple):
    """Of both convolutions, their norms folded in; see `pack_pair`. The rows of a channel are contiguous."""

    kernel1: Float[Array, "c taps1 i"]
    bias1: Float[Array, " c"]
    kernel2: Float[Array, "taps2 c o"]
    bias2: Float[Array, " o"]


def pack_pair(
    kernel1: Float[np.ndarray, "k k i c"],
    bias1: Float[np.ndarray, " c"],
    kernel2: Float[np.ndarray, "l l c o"],
    bias2: Float[np.ndarray, " o"],
    dtype=jnp.float32,
) -> PairWeights:
    """Lays weights out; the kernels become `dtype`, the biases stay float32."""
    kernel1 = np.moveaxis(kernel1.reshape(-1, *kernel1.shape[2:]), 2, 0)
    kernel2 = kernel2.reshape(-1, *kernel2.shape[2:])
    kernel1, kernel2 = (jnp.asarray(kernel, dtype) for kernel in (kernel1, kernel2))
    bias1, bias2 = (jnp.asarray(bias, jnp.float32) for bias in (bias1, bias2))
    return PairWeights(kernel1, bias1, kernel2, bias2)


def compact_pair(
    x: Float[Array, "b t h w i"],
    weights: PairWeights,
    actions: Int8[Array, "b t c"],
    strides: tuple[int, int] = (1, 1),
    tile: Tile = TILE,
) -> Float[Array, "b t y x o"]:
    """conv2(fuse(relu(conv1(x)))) with Eq. 3 by `actions`, without a gradient.

    Products of x's type, sums in float32; what lies between the convolutions is of x's type again. float32 is
    multiplied as `jax.default_matmul_precision` says, on a GPU by default as TensorFloat-32. What isn't
    finite in a skipped channel doesn't make others NaN, as 0 * inf does in the dense computation.

    Args:
        x: float32 or bfloat16, as the kernels.
        weights: from `pack_pair`.
        actions: from `block.codes`.
        strides: of the two convolutions.
        tile: how the work is cut.

    Raises:
        UserError: for another type of x, or a frame of more than 2^31 values.
    """
    if x.dtype != weights.kernel1.dtype or x.dtype not in _DTYPES:
        raise UserError(f"x: expected {weights.kernel1.dtype}, float32 or bfloat16, found {x.dtype}")
    # Imported when needed: without Triton in jaxlib, models must still run on its CPU.
    from adafuse_jax.kernels import pallas_kernels as kernels

    b, t, h, w, i = x.shape
    (c, taps1, _), (taps2, _, o) = weights.kernel1.shape, weights.kernel2.shape
    conv1 = kernels.Conv(h, w, math.isqrt(taps1), strides[0])
    conv2 = kernels.Conv(*conv1.out, math.isqrt(taps2), strides[1])
    columns = columns_of(actions, tile.outputs)
    width = columns.channels.shape[1]
    frames, between, pixels = b * t, math.prod(conv1.out), math.prod(conv2.out)
    if max(h * w * i, between * width, pixels * o) >= 2**31:
        raise UserError(f"x: expected frames of fewer than 2^31 values, found {x.shape[2:]}")
    y = kernels.call(
        functools.partial(kernels.first, conv1, (i, c, width), tile),
        (kernels.THIS, columns.needed, columns.channels, x),
        (kernels.ALL, weights.kernel1, weights.bias1),
        out=(frames, between, width),
        tile=tile,
    )
    # Before a clip's first frame lies another's last, of which nothing is reused: no columns.
    shared, needed = (jnp.roll(of, 1) for of in (columns.shared, columns.needed))
    out = kernels.call(
        functools.partial(kernels.second, conv2, (width, c, o), tile),
        (kernels.THIS, columns.kept, shared, needed, columns.channels, y),
        (kernels.BEFORE, columns.channels, y),
        (kernels.ALL, weights.kernel2, weights.bias2),
        out=(frames, pixels, o),
        tile=tile,
    )
    return out.reshape(b, t, *conv2.out, o)
