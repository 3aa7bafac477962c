"""Convolutions, and their gradients, in the ways that a CPU computes fastest; elsewhere they are XLA's.

On the CPU, in float32 (measured by benchmarks/train.py; times of XLA 0.10.2):

- Depthwise: a sum of shifted images, 15 to 40 times as fast as XLA's loop, and the gradients 5 to 200 times.
- 1x1, in training: matrix products. Of XLA's ways the gradient of the weights, which makes channels of the
  pixels, is slow.
- 3x3 of stride 1, padded by 1, in training: Winograd's minimal filtering F(2x2, 3x3), 16 products for 4
  outputs in place of 36. Rounding errors are about twice as large. It takes a second to compile, so that only
  training does it. Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# Winograd's products need so many channels to outweigh its sums over the pixels, and so many tiles to
# outweigh those over the weights.
MIN_CHANNELS = 128
MIN_TILES = 64

Pads = Sequence[tuple[int, int]]
Grid = list[list[Array]]

# Y = A^T [(G w G^T) * (B^T x B)] A for 4x4 inputs x, 3x3 weights w and 2x2 outputs Y.
_B_T = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_A_T = ((1, 1, 1, 0), (0, 1, -1, -1))


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


def _way(x, kernel, strides, padding, *, feature_group_count=1, lhs_dilation=None, rhs_dilation=None, **_):
    """What computes the convolution, or None where XLA's way is as good."""
    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    float32 = x.dtype == kernel.dtype == jnp.float32
    # Of an open size is what is exported, and that for every platform.
    sized = all(isinstance(size, int) for size in x.shape)
    if jax.default_backend() != "cpu" or not float32 or dilated or not sized:
        return None
    size = kernel.shape[:2]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], size, strides, padding)
    pads = tuple(tuple(pair) for pair in padding)
    if feature_group_count != 1:
        alone = feature_group_count == x.shape[-1] == kernel.shape[-1]
        return functools.partial(depthwise, pads=pads) if alone else None
    if size == (1, 1) and pads == ((0, 0),) * 2:
        return pointwise
    if size == (3, 3) and pads == ((1, 1),) * 2 and tuple(strides) == (1, 1):
        tiles = x.shape[0] * -(-x.shape[1] // 2) * -(-x.shape[2] // 2)
        if min(kernel.shape[2:]) >= MIN_CHANNELS and tiles >= MIN_TILES:
            return winograd
    return None


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def winograd(
    x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"], strides: tuple[int, int] = (1, 1)
) -> Float[Array, "n h w o"]:
    """A 3x3 convolution of stride 1, padded by 1."""
    return _xla(x, kernel, strides, ((1, 1), (1, 1)))


def _winograd_forward(x, kernel, strides):
    weights = _transform(_G, [[kernel[i, j] for j in range(3)] for i in range(3)])
    return _filter(x, weights, contract=0), (x, kernel)


def _winograd_backward(strides, inputs, dy):
    x, kernel = inputs
    # Correlation with the kernel turned by 180 degrees, its input and output channels exchanged.
    turned = [[kernel[2 - i, 2 - j] for j in range(3)] for i in range(3)]
    dx = _filter(dy, _transform(_G, turned), contract=1)
    # Y's transpose in w: dw = G^T [(B^T x B) * (A dY A^T)] G, summed over the tiles by a product.
    seen, outputs = _transform(_B_T, _tiles(x, 4)), _transform(_transposed(_A_T), _tiles(dy, 2))
    products = [
        [_outer(v, d) for v, d in zip(vs, ds, strict=True)] for vs, ds in zip(seen, outputs, strict=True)
    ]
    return dx, jnp.stack([jnp.stack(row) for row in _transform(_transposed(_G), products)])


winograd.defvjp(_winograd_forward, _winograd_backward)


def _xla(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _filter(x: Float[Array, "n h w i"], weights: Grid, contract: int) -> Float[Array, "n h w o"]:
    """Winograd's forward with transformed weights, whose axis `contract` goes with the channels of x."""
    seen = _transform(_B_T, _tiles(x, 4))
    dims = (((1,), (contract,)), ((), ()))
    products = [
        [lax.dot_general(v, w, dims) for v, w in zip(vs, ws, strict=True)]
        for vs, ws in zip(seen, weights, strict=True)
    ]
    n, h, w, _ = x.shape
    tall, wide = -(-h // 2), -(-w // 2)
    out = [[y.reshape(n, tall, wide, -1) for y in row] for row in _transform(_A_T, products)]
    rows = [jnp.stack(row, 3).reshape(n, tall, 2 * wide, -1) for row in out]
    return jnp.stack(rows, 2).reshape(n, 2 * tall, 2 * wide, -1)[:, :h, :w]


def _tiles(x: Float[Array, "n h w c"], side: int) -> Grid:
    """The tiles of `side` x `side` pixels at stride 2, (tiles, c) for each pixel of a tile.

    Those of 4 start one pixel outside of the image; beyond it are zeros.
    """
    _, h, w, c = x.shape
    before, tall, wide = side // 2 - 1, -(-h // 2), -(-w // 2)
    x = jnp.pad(x, ((0, 0), (before, 2 * tall - h + before), (before, 2 * wide - w + before), (0, 0)))
    last = 2 * tall - 1, 2 * wide - 1
    return [
        [x[:, i : i + last[0] : 2, j : j + last[1] : 2].reshape(-1, c) for j in range(side)]
        for i in range(side)
    ]


def _transform(matrix: Sequence[Sequence[float]], grid: Grid) -> Grid:
    """Gives matrix @ grid @ matrix^T, where the grid's elements are arrays."""
    columns = [_combine(matrix, column) for column in zip(*grid, strict=True)]
    return [_combine(matrix, row) for row in zip(*columns, strict=True)]


def _combine(matrix: Sequence[Sequence[float]], arrays: Sequence[Array]) -> list[Array]:
    # Spelled out, without the zeros: XLA makes one loop over the pixels of it.
    sums = []
    for row in matrix:
        terms = [a if m == 1 else m * a for m, a in zip(row, arrays, strict=True) if m]
        sums.append(sum(terms[1:], terms[0]))
    return sums


def _transposed(matrix: Sequence[Sequence[float]]) -> Sequence[Sequence[float]]:
    return tuple(zip(*matrix, strict=True))


def _pixels(x: Float[Array, "*n c"]) -> Float[Array, "m c"]:
    return x.reshape(-1, x.shape[-1])


def _outer(x: Float[Array, "m i"], y: Float[Array, "m o"]) -> Float[Array, "i o"]:
    """x^T y; Eigen is up to twice as fast where the result has more columns than rows."""
    dims = (((0,), (0,)), ((), ()))
    if x.shape[1] <= y.shape[1]:
        return lax.dot_general(x, y, dims)
    # The barrier keeps XLA from exchanging the two again.
    return lax.optimization_barrier(lax.dot_general(y, x, dims)).T
