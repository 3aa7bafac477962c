"""Convolutions of any stride by native code, their gradients and those of the weights, as products."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from adafuse_jax.kernels import build
from adafuse_jax.kernels.sharing import by_image

CONV, TRANSPOSE, GRADIENT = "adafuse_jax_conv", "adafuse_jax_conv_transpose", "adafuse_jax_conv_gradient"


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Where the kernel lies on the images.

    Attributes:
        size: height and width of the images.
        kernel: of the kernel, up to 31; larger than `before` and no smaller than `strides`.
        strides: pixels from one output to the next.
        before: rows and columns of zeros above and left of an image.
        out: height and width of the outputs; what lies beyond the images is zero.
        level: instructions to use, of `build.LEVELS`.
    """

    size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    before: tuple[int, int]
    out: tuple[int, int]
    level: str = "best"

    def numbers(self) -> dict[str, np.int64]:
        """What the native code wants to know and the arrays don't say."""
        pairs = zip(("stride_y", "stride_x", "top", "left"), (*self.strides, *self.before), strict=True)
        return {name: np.int64(n) for name, n in (*pairs, ("level", build.LEVELS.index(self.level)))}


def convolved(
    x: Float[Array, "n h w i"], kernel: Float[Array, "y x i o"], at: Geometry
) -> Float[Array, "n p q o"]:
    """The convolution; float32, o a multiple of 16."""
    return _convolved(at)(x, kernel)


def transposed(
    dy: Float[Array, "n p q o"], kernel: Float[Array, "y x i o"], at: Geometry
) -> Float[Array, "n h w i"]:
    """Its transpose, which makes dx of dy; float32, i a multiple of 16."""
    return _transposed(at)(dy, kernel)


def gradient(
    x: Float[Array, "n h w i"], dy: Float[Array, "n p q o"], at: Geometry
) -> Float[Array, "y x i o"]:
    """The gradient of the kernel; float32, o a multiple of 16."""
    return _gradient(at)(x, dy)


@functools.cache
def _convolved(at: Geometry):
    def call(x, kernel):
        out = jax.ShapeDtypeStruct((len(x), *at.out, kernel.shape[3]), jnp.float32)
        return jax.ffi.ffi_call(CONV, out)(x, kernel, **at.numbers())

    return by_image(call, "n h w i, a b i o -> n p q o")


@functools.cache
def _transposed(at: Geometry):
    def call(dy, kernel):
        out = jax.ShapeDtypeStruct((len(dy), *at.size, kernel.shape[2]), jnp.float32)
        return jax.ffi.ffi_call(TRANSPOSE, out)(dy, kernel, **at.numbers())

    return by_image(call, "n p q o, a b i o -> n h w i")


@functools.cache
def _gradient(at: Geometry):
    def call(x, dy):
        out = jax.ShapeDtypeStruct((*at.kernel, x.shape[3], dy.shape[3]), jnp.float32)
        return jax.ffi.ffi_call(GRADIENT, out)(x, dy, **at.numbers())

    return by_image(call, "n h w i, n p q o -> a b i o")
