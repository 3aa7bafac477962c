"""3x3 convolutions in training on the CPU: native code for them, their gradients and those of the weights.

Winograd's minimal filtering F(2x2, 3x3), 16 products for 4 outputs in place of 36; rounding errors are about
twice as large. Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016. Where
no gradient is taken it is XLA's convolution, so that only training waits for a compiler.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from adafuse_jax.kernels import build
from adafuse_jax.ops import conv as ops

GROUP = 16  # channels that winograd.cc takes at a time
# The products need so many channels to outweigh the sums over the pixels, and so many tiles to outweigh those
# over the weights.
MIN_CHANNELS = 64
MIN_TILES = 64

FILTER, GRADIENT = "adafuse_jax_filter", "adafuse_jax_filter_gradient"


def conv(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "y x j o"],
    strides: Sequence[int],
    padding: str | ops.Pads,
    **options,
) -> Float[Array, "n p q o"]:
    """`jax.lax.conv_general_dilated` with its arguments, channels last: what `nnx.Conv` wants to call."""
    pads = ops.pads_of(x, kernel, strides, padding, **options)
    alike = kernel.shape[:2] == (3, 3) and pads == ((1, 1),) * 2 and tuple(strides) == (1, 1)
    if alike and kernel.shape[2] == x.shape[3]:
        tiles = x.shape[0] * -(-x.shape[1] // 2) * -(-x.shape[2] // 2)
        channels = kernel.shape[2:]
        if min(channels) >= MIN_CHANNELS and not any(c % GROUP for c in channels) and tiles >= MIN_TILES:
            return convolution(x, kernel)
    return ops.conv(x, kernel, strides, padding, **options)


@jax.custom_vjp
def convolution(x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "n h w o"]:
    """A 3x3 convolution of stride 1, padded by 1; of float32 and channels in groups of 16."""
    return _xla(x, kernel)


def _forward(x, kernel):
    return filtered(x, kernel) if build.load() else _xla(x, kernel), (x, kernel)


def _backward(inputs, dy):
    if not build.load():
        return jax.vjp(_xla, *inputs)[1](dy)
    x, kernel = inputs
    return filtered(dy, kernel, turned=True), gradient(x, dy)


convolution.defvjp(_forward, _backward)


def _xla(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def filtered(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 i o"], turned: bool = False, level: str = "best"
) -> Float[Array, "n h w d"]:
    """The convolution by native code.

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
    """The gradient of the kernel by native code; see `filtered`."""
    return _gradient(build.LEVELS.index(level))(x, dy)


@functools.cache
def _filtered(turned: bool, level: int):
    def call(x, kernel):
        out = jax.ShapeDtypeStruct((*x.shape[:3], kernel.shape[2 if turned else 3]), jnp.float32)
        return jax.ffi.ffi_call(FILTER, out)(x, kernel, turned=np.int64(turned), level=np.int64(level))

    def partition(mesh, arguments, result):
        images, whole = _by_image(mesh, arguments)
        return mesh, call, images, (images, whole)

    rule = "n h w c, a b i o -> n h w d"
    return _partitioned(call, partition, rule, tuple("hwcabiod"))


@functools.cache
def _gradient(level: int):
    def call(x, dy):
        out = jax.ShapeDtypeStruct((3, 3, x.shape[3], dy.shape[3]), jnp.float32)
        return jax.ffi.ffi_call(GRADIENT, out)(x, dy, level=np.int64(level))

    def partition(mesh, arguments, result):
        images, whole = _by_image(mesh, arguments)
        axes = images.spec[0]
        summed = call if axes is None else lambda x, dy: lax.psum(call(x, dy), axes)
        return mesh, summed, whole, (images, images)

    return _partitioned(call, partition, "n h w i, n h w o -> a b i o", tuple("hwioab"))


def _partitioned(call, partition, rule, whole):
    """`call` as one that several devices share by images, where XLA would have each compute all of them.

    `whole` are the rule's other axes, in its order.
    """
    divided = custom_partitioning(call)
    divided.def_partition(partition=partition, sharding_rule=rule, need_replication_factors=whole)
    return sequential_vmap(divided)


def _by_image(mesh, arguments):
    """The shardings of images, by their first axis as the first argument has it, and of a kernel."""
    spec = arguments[0].sharding.spec
    images = PartitionSpec(spec[0] if spec else None, None, None, None)
    return NamedSharding(mesh, images), NamedSharding(mesh, PartitionSpec(None, None, None, None))
