"""The inner loops of `kernels.pallas_pair`, as a GPU's Triton and as Pallas' interpreter on a CPU run them.

A program computes one tile of one frame. All arrays that it sees are flat; what lies outside of them, of the
image or of a run of columns is masked.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from adafuse_jax.kernels.columns import ALIGNED
from adafuse_jax.ops import costs

THIS, BEFORE, ALL = "this frame", "the frame before", "all"  # what of an array a program sees


def call(kernel, *operands, out, tile):
    """Launches a kernel on a grid of (tiles of outputs, tiles of pixels, frames).

    Args:
        kernel: `first` or `second`, with all but its arrays given.
        *operands: (what a program sees, arrays), in the kernel's order; all but those seen as a whole begin
            with an axis of frames. The last two are kernel and bias of the convolution.
        out: frames, pixels and columns or channels of the result, which is of the kernel's type.
        tile: a `pallas_pair.Tile`.
    """
    frames, pixels, outputs = out

    def spec(seen, size):
        if seen == ALL:
            return pl.BlockSpec((size,), lambda o, p, n: (0,))
        if seen == BEFORE:
            return pl.BlockSpec((None, size), lambda o, p, n: (jnp.maximum(n - 1, 0), 0))
        return pl.BlockSpec((None, size), lambda o, p, n: (n, 0))

    arrays, specs = [], []
    for seen, *of in operands:
        for array in of:
            arrays.append(array.reshape(-1) if seen == ALL else array.reshape(frames, -1))
            specs.append(spec(seen, arrays[-1].shape[-1]))

    def run(interpret, *arrays):
        return pl.pallas_call(
            kernel,
            jax.ShapeDtypeStruct((frames, pixels * outputs), arrays[-2].dtype),  # as the kernel of weights
            grid=(pl.cdiv(outputs, tile.outputs), pl.cdiv(pixels, tile.pixels), frames),
            in_specs=specs,
            out_specs=spec(THIS, pixels * outputs),
            compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
            interpret=interpret,
            name=f"{kernel.func.__name__}_of_pair",
        )(*arrays)

    compiled, interpreted = (functools.partial(run, interpret) for interpret in (False, True))
    return jax.lax.platform_dependent(*arrays, cpu=interpreted, default=compiled)


class Conv(NamedTuple):
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


def first(conv, sizes, tile, needed, channels, x, kernel, bias, out):
    """relu(conv1(x)) of a frame, in the columns of `needed`; sizes: inputs, channels, columns of a pixel."""
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


def second(conv, sizes, tile, kept, shared, needed, *arrays):
    """conv2 of a frame's channels that aren't skipped; sizes: columns of a pixel, channels, outputs.

    `arrays` are channels and maps of this frame, those of the frame before, the weights and the output.
    """
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
