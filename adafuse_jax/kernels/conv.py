"""Convolutions that train fast on the CPU: by native code where there is a gradient to take.

Where there is none, it is XLA's convolution, so that only training waits for a compiler. So it is without a
compiler, on other devices, in other types and of few channels; the ways of `ops.conv` come next there.
"""

import functools
from collections.abc import Sequence

import jax
from jax import lax
from jaxtyping import Array, Float

from adafuse_jax.kernels import build, direct, winograd
from adafuse_jax.ops import conv as ops

GROUP = 16  # channels that the native code takes at a time
# Of the outputs, and for Winograd of the inputs, for products to outweigh what gathers their factors.
MIN_CHANNELS = 64
MIN_TILES = 64  # for Winograd's products to outweigh the sums over the weights

SAME = ((1, 1), (1, 1))


def conv(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "y x j o"],
    strides: Sequence[int],
    padding: str | ops.Pads,
    **options,
) -> Float[Array, "n p q o"]:
    """`jax.lax.conv_general_dilated` with its arguments, channels last: what `nnx.Conv` wants to call."""
    pads = ops.pads_of(x, kernel, strides, padding, **options)
    if pads is not None and kernel.shape[:2] != (1, 1) and kernel.shape[2] == x.shape[3]:
        sides = zip(kernel.shape[:2], strides, pads, strict=True)
        fits = all(k <= 31 and s <= k and before < k for k, s, (before, _) in sides)
        if fits and kernel.shape[3] >= MIN_CHANNELS and not kernel.shape[3] % GROUP:
            return convolution(x, kernel, tuple(strides), pads)
    return ops.conv(x, kernel, strides, padding, **options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution(
    x: Float[Array, "n h w i"], kernel: Float[Array, "y x i o"], strides: tuple[int, int], pads: ops.Pads
) -> Float[Array, "n p q o"]:
    """A convolution without groups or dilation; of float32 and outputs in groups of 16."""
    return _xla(x, kernel, strides, pads)


def _xla(x, kernel, strides, pads):
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _forward(x, kernel, strides, pads):
    if not build.load():
        y = _xla(x, kernel, strides, pads)
    elif _filters(x, kernel, strides, pads):
        y = winograd.filtered(x, kernel)
    else:
        y = direct.convolved(x, kernel, _geometry(x, kernel, strides, pads))
    return y, (x, kernel)


def _backward(strides, pads, inputs, dy):
    x, kernel = inputs
    _, xla = jax.vjp(lambda *both: _xla(*both, strides, pads), x, kernel)
    if not build.load():
        return xla(dy)
    if _filters(x, kernel, strides, pads):
        return winograd.filtered(dy, kernel, turned=True), winograd.gradient(x, dy)
    at = _geometry(x, kernel, strides, pads)
    # That of the images themselves, of three colours, isn't wanted in training.
    dx = xla(dy)[0] if x.shape[3] % GROUP else direct.transposed(dy, kernel, at)
    return dx, direct.gradient(x, dy, at)


convolution.defvjp(_forward, _backward)


def _filters(x, kernel, strides, pads) -> bool:
    """Whether Winograd's filtering applies and pays."""
    tiles = x.shape[0] * -(-x.shape[1] // 2) * -(-x.shape[2] // 2)
    inputs = kernel.shape[2]
    alike = kernel.shape[:2] == (3, 3) and strides == (1, 1) and pads == SAME
    return alike and inputs >= MIN_CHANNELS and not inputs % GROUP and tiles >= MIN_TILES


def _geometry(x, kernel, strides, pads) -> direct.Geometry:
    before = tuple(pad[0] for pad in pads)
    sides = zip(x.shape[1:3], kernel.shape[:2], strides, pads, strict=True)
    out = tuple((size + sum(pad) - k) // stride + 1 for size, k, stride, pad in sides)
    return direct.Geometry(x.shape[1:3], kernel.shape[:2], strides, before, out)
