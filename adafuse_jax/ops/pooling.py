"""Max and average pooling as PyTorch computes them in ceil mode, channels last."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def ceil_out(size: int, window: int, stride: int, padding: int = 0) -> int:
    """Side of the output in ceil mode: the windows reach the end of the padded input.

    The last of them may go beyond it, but not start beyond the input: it would see nothing of it.
    """
    out = -((window - size - 2 * padding) // stride) + 1  # rounded up
    return out - 1 if (out - 1) * stride >= size + padding else out


def max_pool(
    x: Float[Array, "n h w c"], window: int = 3, stride: int = 2, padding: int = 0
) -> Float[Array, "n y x c"]:
    """Max pooling in ceil mode; what lies outside of the input never is the largest."""
    outside = [
        (padding, (ceil_out(s, window, stride, padding) - 1) * stride + window - s - padding)
        for s in x.shape[1:3]
    ]
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, window, window, 1), (1, stride, stride, 1), [(0, 0), *outside, (0, 0)]
    )


def avg_pool(x: Float[Array, "n h w c"], window: int = 3) -> Float[Array, "n h w c"]:
    """Average pooling of stride 1, padded by half its (odd) window with zeros, which count as pixels.

    At stride 1 no window goes beyond the padding: ceil mode changes nothing.
    """
    edge = (window // 2, window // 2)
    added = jax.lax.reduce_window(
        x, 0.0, jax.lax.add, (1, window, window, 1), (1, 1, 1, 1), [(0, 0), edge, edge, (0, 0)]
    )
    return added / window**2
