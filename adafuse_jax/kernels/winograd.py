"""3x3 convolutions of stride 1, padded by 1, by native code, their gradients and those of the weights.

Winograd's minimal filtering F(2x2, 3x3), 16 products for 4 outputs in place of 36; rounding errors are about
twice as large. Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from adafuse_jax.kernels import build
from adafuse_jax.kernels.sharing import by_image

FILTER, GRADIENT = "adafuse_jax_filter", "adafuse_jax_filter_gradient"


def filtered(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 i o"], turned: bool = False, level: str = "best"
) -> Float[Array, "n h w d"]:
    """The convolution.

    Args:
        x: float32; its channels are the kernel's inputs, or its outputs if turned.
        kernel: both its sizes multiples of 16.
        turned: computes the transpose, which makes dx of dy.
        level: instructions to use, of `build.LEVELS`.
    """
    return _filtered(turned, build.LEVELS.index(level))(x, kernel)


def gradient(
    x: Float[Array, "n h w i"], dy: Float[Array, "n h w o"], level: str = "best"
) -> Float[Array, "3 3 i o"]:
    """The gradient of the kernel; see `filtered`."""
    return _gradient(build.LEVELS.index(level))(x, dy)


@functools.cache
def _filtered(turned: bool, level: int):
    def call(x, kernel):
        out = jax.ShapeDtypeStruct((*x.shape[:3], kernel.shape[2 if turned else 3]), jnp.float32)
        return jax.ffi.ffi_call(FILTER, out)(x, kernel, turned=np.int64(turned), level=np.int64(level))

    return by_image(call, "n h w c, a b i o -> n h w d")


@functools.cache
def _gradient(level: int):
    def call(x, dy):
        out = jax.ShapeDtypeStruct((3, 3, x.shape[3], dy.shape[3]), jnp.float32)
        return jax.ffi.ffi_call(GRADIENT, out)(x, dy, level=np.int64(level))

    return by_image(call, "n h w i, n h w o -> a b i o")
