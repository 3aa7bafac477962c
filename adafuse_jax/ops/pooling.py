"""Max and average pooling as PyTorch computes them, channels last."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def ceil_out(size: int, window: int, stride: int, padding: int = 0) -> int:
    """Side of the output in ceil mode: the windows reach the end of the padded input.

    The last of them may go beyond it, but not start beyond the input: it would see nothing of it.
    """
    out = -((window - size - 2 * padding) // stride) + 1  # rounded up
    return out - 1 if (out - 1) * stride >= size + padding else out


def max_pool(
    x: Float[Array, "n h w c"], window: int = 3, stride: int = 2, padding: int = 0, ceil: bool = True
) -> Float[Array, "n y x c"]:
    """Max pooling, by default in ceil mode; what lies outside of the input never is the largest.

    The gradient goes to the first of equal pixels of a window, as in PyTorch and XLA.
    """
    pads = []
    for size in x.shape[1:3]:
        out = ceil_out(size, window, stride, padding) if ceil else (size + 2 * padding - window) // stride + 1
        pads.append((padding, (out - 1) * stride + window - size - padding))
    return _max_pool(x, window, stride, tuple(pads))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, stride, pads):
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, window, window, 1), (1, stride, stride, 1), ((0, 0), *pads, (0, 0))
    )


# XLA's own gradient looks for the largest pixels with one comparison after the other: on a CPU it takes 20
# times as long, a sixth of a ResNet-18's step.
def _max_pool_forward(x, window, stride, pads):
    """The largest pixels, and which of its window's each is."""
    (above, below), (left, right) = pads
    tall, wide = x.shape[1] + above + below, x.shape[2] + left + right
    padded = jax.lax.pad(
        x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), (above, below, 0), (left, right, 0), (0, 0, 0))
    )
    largest, which = None, None
    for place, (i, j) in enumerate(np.ndindex(window, window)):
        seen = padded[:, i : tall - window + i + 1 : stride, j : wide - window + j + 1 : stride]
        if largest is None:
            largest, which = seen, jnp.zeros(seen.shape, jnp.int8)
        else:
            which = jnp.where(seen > largest, jnp.int8(place), which)
            largest = jnp.maximum(largest, seen)  # keeps NaN
    return largest, (which, x.shape[1:3])


def _max_pool_backward(window, stride, pads, kept, dy):
    which, size = kept
    zero = jnp.zeros((), dy.dtype)
    dx = 0
    for place, at in enumerate(np.ndindex(window, window)):
        # Where these pixels are in x; a negative width cuts off what is outside of it.
        edges = [
            (start - before, side + before - start - (out - 1) * stride - 1, stride - 1)
            for start, (before, _), side, out in zip(at, pads, size, dy.shape[1:3], strict=True)
        ]
        dx = dx + jax.lax.pad(jnp.where(which == place, dy, zero), zero, ((0, 0, 0), *edges, (0, 0, 0)))
    return (dx,)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def avg_pool(x: Float[Array, "n h w c"], window: int = 3) -> Float[Array, "n h w c"]:
    """Average pooling of stride 1, padded by half its (odd) window with zeros, which count as pixels.

    At stride 1 no window goes beyond the padding: ceil mode changes nothing.
    """
    edge = (window // 2, window // 2)
    added = jax.lax.reduce_window(
        x, 0.0, jax.lax.add, (1, window, window, 1), (1, 1, 1, 1), [(0, 0), edge, edge, (0, 0)]
    )
    return added / window**2
