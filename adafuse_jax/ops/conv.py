"""Convolutions, and their gradients, in the ways that a CPU computes fastest; elsewhere they are XLA's.

On the CPU, in float32 (measured by benchmarks/train.py; times of XLA 0.10.2):

- Depthwise: a sum of shifted images, 15 to 40 times as fast as XLA's loop, and the gradients 5 to 200 times.
- 1x1, in training: matrix products. Of XLA's ways the gradient of the weights, which makes channels of the
  pixels, is slow.
- 3x3 of stride 1: see kernels/conv.py, which comes before this.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Pads = Sequence[tuple[int, int]]


def conv(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "y x j o"],
    strides: Sequence[int],
    padding: str | Pads,
    **options,
) -> Float[Array, "n p q o"]:
    """`jax.lax.conv_general_dilated` with its arguments, channels last: what `nnx.Conv` wants to call."""
    way = _way(x, kernel, strides, padding, **options)
    if way is None:
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    return way(x, kernel, tuple(strides))


def _way(x, kernel, strides, padding, *, feature_group_count=1, **options):
    """What computes the convolution, or None where XLA's way is as good."""
    pads = pads_of(x, kernel, strides, padding, **options)
    if pads is None:
        return None
    if feature_group_count != 1:
        alone = feature_group_count == x.shape[-1] == kernel.shape[-1]
        return functools.partial(depthwise, pads=pads) if alone else None
    return pointwise if kernel.shape[:2] == (1, 1) and pads == ((0, 0),) * 2 else None


def pads_of(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "y x j o"],
    strides: Sequence[int],
    padding: str | Pads,
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    **_,
) -> Pads | None:
    """The padding in pixels before and after, or None for what is XLA's: another device or type, dilation."""
    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    float32 = x.dtype == kernel.dtype == jnp.float32
    # Of an open size is what is exported, and that for every platform.
    sized = all(isinstance(size, int) for size in x.shape)
    if jax.default_backend() != "cpu" or not float32 or dilated or not sized:
        return None
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return tuple(tuple(pair) for pair in padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(
    x: Float[Array, "n h w c"], kernel: Float[Array, "y x 1 c"], strides: tuple[int, int], pads: Pads
) -> Float[Array, "n p q c"]:
    """Each channel with a kernel of its own."""
    return _shifted_sum(x, kernel, strides, pads)


def _shifted_sum(x, kernel, strides, pads):
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    ends = [size - side + 1 for size, side in zip(x.shape[1:3], kernel.shape[:2], strict=True)]
    return sum(
        x[:, i : ends[0] + i : strides[0], j : ends[1] + j : strides[1]] * kernel[i, j, 0]
        for i, j in np.ndindex(kernel.shape[:2])
    )


def _depthwise_backward(strides, pads, inputs, dy):
    x, kernel = inputs
    _, transpose = jax.vjp(lambda x: _shifted_sum(x, kernel, strides, pads), x)
    padded, pixels = jnp.pad(x, ((0, 0), *pads, (0, 0))), _pixels(dy)
    ends = [size - side + 1 for size, side in zip(padded.shape[1:3], kernel.shape[:2], strict=True)]

    def of_a_tap(at):
        seen = lax.dynamic_slice(padded, (0, *at, 0), (len(x), *ends, x.shape[-1]))
        seen = _pixels(seen[:, :: strides[0], :: strides[1]])
        return (lax.optimization_barrier(seen) * pixels).sum(0)  # fast over one axis alone; see ops/norm.py

    # A loop, as 25 sums a convolution take long to compile.
    taps = jnp.asarray(list(np.ndindex(kernel.shape[:2])))
    return *transpose(dy), lax.map(of_a_tap, taps).reshape(kernel.shape)


depthwise.defvjp(lambda x, kernel, *rest: (_shifted_sum(x, kernel, *rest), (x, kernel)), _depthwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def pointwise(
    x: Float[Array, "n h w i"], kernel: Float[Array, "1 1 i o"], strides: tuple[int, int]
) -> Float[Array, "n p q o"]:
    """A 1x1 convolution without padding."""
    return _xla(x, kernel, strides, "VALID")


def _pointwise_forward(x, kernel, strides):
    read = x[:, :: strides[0], :: strides[1]]
    y = (_pixels(read) @ kernel[0, 0]).reshape(*read.shape[:-1], -1)
    return y, (x, kernel)


def _pointwise_backward(strides, inputs, dy):
    x, kernel = inputs
    read, transpose = jax.vjp(lambda x: x[:, :: strides[0], :: strides[1]], x)
    dread = lax.dot_general(_pixels(dy), kernel[0, 0], (((1,), (1,)), ((), ())))
    return *transpose(dread.reshape(read.shape)), _outer(_pixels(read), _pixels(dy))[None, None]


pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def _xla(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _pixels(x: Float[Array, "*n c"]) -> Float[Array, "m c"]:
    return x.reshape(-1, x.shape[-1])


def _outer(x: Float[Array, "m i"], y: Float[Array, "m o"]) -> Float[Array, "i o"]:
    """x^T y; Eigen is up to twice as fast where the result has more columns than rows."""
    dims = (((0,), (0,)), ((), ()))
    if x.shape[1] <= y.shape[1]:
        return lax.dot_general(x, y, dims)
    # The barrier keeps XLA from exchanging the two again.
    return lax.optimization_barrier(lax.dot_general(y, x, dims)).T
