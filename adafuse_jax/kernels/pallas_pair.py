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

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int8

from adafuse_jax.errors import UserError
from adafuse_jax.kernels.columns import ALIGNED, columns_of
from adafuse_jax.ops import costs

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


class _Conv(NamedTuple):
    """A square convolution of a frame, padded by half its kernel; sizes in pixels."""

    height: int
    width: int
    kernel: int
    stride: int

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of what it gives."""
        sizes = self.height, self.width
        return tuple(costs.conv_out(s, self.kernel, self.stride, self.kernel // 2) for s in sizes)

    def source(self, pixel, tap):
        """The pixel of the input under a tap of the pixels of the output, and whether there is one."""
        rows, columns = self.out
        of_pixel, of_tap = _divided(pixel, columns), _divided(tap, self.kernel)
        y, x = (p * self.stride + t - self.kernel // 2 for p, t in zip(of_pixel, of_tap, strict=True))
        inside = (y >= 0) & (y < self.height) & (x >= 0) & (x < self.width) & (pixel < rows * columns)
        return y * self.width + x, inside


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
    b, t, h, w, i = x.shape
    (c, taps1, _), (taps2, _, o) = weights.kernel1.shape, weights.kernel2.shape
    conv1 = _Conv(h, w, math.isqrt(taps1), strides[0])
    conv2 = _Conv(*conv1.out, math.isqrt(taps2), strides[1])
    columns = columns_of(actions, tile.outputs)
    width = columns.channels.shape[1]
    frames, between, pixels = b * t, math.prod(conv1.out), math.prod(conv2.out)
    if max(h * w * i, between * width, pixels * o) >= 2**31:
        raise UserError(f"x: expected frames of fewer than 2^31 values, found {x.shape[2:]}")
    y = _call(
        functools.partial(_first, conv1, (i, c, width), tile),
        (_THIS, columns.needed, columns.channels, x),
        (_ALL, weights.kernel1, weights.bias1),
        out=(frames, between, width),
        tile=tile,
    )
    # Before a clip's first frame lies another's last, of which nothing is reused: no columns.
    shared, needed = (jnp.roll(of, 1) for of in (columns.shared, columns.needed))
    out = _call(
        functools.partial(_second, conv2, (width, c, o), tile),
        (_THIS, columns.kept, shared, needed, columns.channels, y),
        (_BEFORE, columns.channels, y),
        (_ALL, weights.kernel2, weights.bias2),
        out=(frames, pixels, o),
        tile=tile,
    )
    return out.reshape(b, t, *conv2.out, o)


_THIS, _BEFORE, _ALL = "this frame", "the frame before", "all"  # what of an array a program sees


def _call(kernel, *operands, out, tile):
    """A kernel on a grid of (tiles of outputs, tiles of pixels, frames); all that it sees is flat."""
    frames, pixels, outputs = out

    def spec(seen, size):
        if seen == _ALL:
            return pl.BlockSpec((size,), lambda o, p, n: (0,))
        if seen == _BEFORE:
            return pl.BlockSpec((None, size), lambda o, p, n: (jnp.maximum(n - 1, 0), 0))
        return pl.BlockSpec((None, size), lambda o, p, n: (n, 0))

    arrays, specs = [], []
    for seen, *of in operands:
        for array in of:
            arrays.append(array.reshape(-1) if seen == _ALL else array.reshape(frames, -1))
            specs.append(spec(seen, arrays[-1].shape[-1]))

    def run(interpret, *arrays):
        return pl.pallas_call(
            kernel,
            jax.ShapeDtypeStruct((frames, pixels * outputs), arrays[-2].dtype),  # as the kernel of weights
            grid=(pl.cdiv(outputs, tile.outputs), pl.cdiv(pixels, tile.pixels), frames),
            in_specs=specs,
            out_specs=spec(_THIS, pixels * outputs),
            compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
            interpret=interpret,
            name=kernel.func.__name__.strip("_") + "_of_pair",
        )(*arrays)

    compiled, interpreted = (functools.partial(run, interpret) for interpret in (False, True))
    return jax.lax.platform_dependent(*arrays, cpu=interpreted, default=compiled)


def _first(conv, sizes, tile, needed, channels, x, kernel, bias, out):
    """relu(conv1(x)) of a frame, the columns listed."""
    i, c, width = sizes
    column, pixel = _numbers(0, tile.outputs), _numbers(1, tile.pixels)
    channel = channels[pl.ds(pl.program_id(0) * tile.outputs, tile.outputs)]
    exists, blocks = channel < c, pl.cdiv(i, tile.inputs)

    def step(number, total):
        tap, block = _divided(number, blocks)
        source, inside = conv.source(pixel, tap)
        of_x = block * tile.inputs + jnp.arange(tile.inputs)
        there = of_x < i
        a = _load(x, source[:, None] * i + of_x[None], inside[:, None] & there[None])
        at = (channel * conv.kernel**2 + tap)[:, None] * i + of_x[None]
        return total + triton.dot(a, _load(kernel, at, exists[:, None] & there[None]), trans_b=True)

    end = needed[0] * ALIGNED
    # As a factor: jax 0.10.2 lowers a where of two constants to one of booleans, which Triton rejects.
    steps = (pl.program_id(0) * tile.outputs < end).astype(jnp.int32) * (conv.kernel**2 * blocks)
    total = jax.lax.fori_loop(0, steps, step, jnp.zeros((tile.pixels, tile.outputs)))
    total = jnp.maximum(total + _load(bias, channel, exists)[None], 0)
    _store(out, pixel[:, None] * width + column[None], total, _inside(conv, pixel, column < end))


def _second(conv, sizes, tile, kept, shared, needed, *arrays):
    """conv2 of a frame's channels that aren't skipped."""
    channels, y, channels_before, y_before, kernel, bias, out = arrays
    width, c, o = sizes
    output, pixel = _numbers(0, tile.outputs), _numbers(1, tile.pixels)

    def products(y, channels, start, end, total):
        """Adds those of the columns from `start` to `end`, in units of `ALIGNED`."""
        # Multiplied here, the compiler knows by what the numbers of the columns divide.
        start, end = start * ALIGNED, end * ALIGNED
        blocks = pl.cdiv(end - start, tile.inputs)

        def of_block(block, total):
            column = start + block * tile.inputs + jnp.arange(tile.inputs)
            channel = _load(channels, column, column < end, c)

            def of_tap(tap, total):
                source, inside = conv.source(pixel, tap)
                # Beyond the end lie other columns, and what was never written.
                a = _load(y, source[:, None] * width + column[None], inside[:, None] & (column < end)[None])
                at = (tap * c + channel)[:, None] * o + output[None]
                return total + triton.dot(a, _load(kernel, at, (channel < c)[:, None] & (output < o)[None]))

            return jax.lax.fori_loop(0, conv.kernel**2, of_tap, total)

        return jax.lax.fori_loop(0, blocks, of_block, total)

    total = jnp.zeros((tile.pixels, tile.outputs))
    total = products(y, channels, 0, kept[0], total)
    total = products(y_before, channels_before, shared[0], needed[0], total)
    total += _load(bias, output, output < o)[None]
    _store(out, pixel[:, None] * o + output[None], total, _inside(conv, pixel, output < o))


def _numbers(axis, size):
    return pl.program_id(axis) * size + jnp.arange(size)


def _inside(conv, pixel, column):
    return (pixel < math.prod(conv.out))[:, None] & column[None]


def _load(array, at, mask, other=0):
    return triton.load(array.at[at], mask=mask, other=jnp.asarray(other, array.dtype))


def _store(array, at, values, mask):
    triton.store(array.at[at], values.astype(array.dtype), mask=mask)


def _divided(a, b):
    """(a // b, a % b) of natural numbers, without what signs need."""
    b = jnp.asarray(b, jnp.int32)
    return jax.lax.div(a, b), jax.lax.rem(a, b)
