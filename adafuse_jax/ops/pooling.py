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
    """Each pixel takes the gradient of every window whose largest it is: up to `reach` in each direction."""
    which, size = kept
    n, tall, wide, c = dy.shape
    reach = -(-window // stride)
    edge, offsets = reach - 1, np.arange(stride)
    # Windows and pixels in blocks of `stride` pixels, as many as have a pixel in a window.
    edges = ((0, 0, 0), (edge, edge, 0), (edge, edge, 0), (0, 0, 0))
    which, dy = (jax.lax.pad(a, jnp.array(0, a.dtype), edges) for a in (which, dy))
    dx = 0
    for back in np.ndindex(reach, reach):
        # Of the window that begins so many blocks before: its place of each pixel of a block, -1 for none.
        rows, columns = (offsets + stride * blocks for blocks in back)
        inside = (rows[:, None] < window) & (columns < window)
        place = np.where(inside, rows[:, None] * window + columns, -1).astype(np.int8)[:, None, :, None]
        (top, left), ends = (edge - back[0], edge - back[1]), (tall + edge, wide + edge)
        its = [a[:, top : top + ends[0], None, left : left + ends[1], None] for a in (which, dy)]
        dx = dx + jnp.where(its[0] == place, its[1], 0)
    dx = dx.reshape(n, (tall + edge) * stride, (wide + edge) * stride, c)
    # A negative width cuts off what is outside of x.
    cut = [
        (-before, before + side - blocks, 0)
        for side, (before, _), blocks in zip(size, pads, dx.shape[1:3], strict=True)
    ]
    return (jax.lax.pad(dx, jnp.zeros((), dx.dtype), ((0, 0, 0), *cut, (0, 0, 0))),)


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
