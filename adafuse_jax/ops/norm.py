"""Batch normalisation as PyTorch computes it (its running variance is the unbiased one)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-5
MOMENTUM = 0.9  # share of the old running value that stays; 0.1 in PyTorch's sense

Moments = tuple[Float[Array, " c"], Float[Array, " c"]]


def moments(x: Float[Array, "*n c"]) -> Moments:
    """Mean and biased variance over all axes but the last, in float32 at least."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return mean, jnp.square(x - mean).mean(axes)


def normalize(
    x: Float[Array, "*n c"],
    statistics: Moments,
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    epsilon: float = EPSILON,
) -> Float[Array, "*n c"]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, in the type of x."""
    mean, var = statistics
    factor = scale * jax.lax.rsqrt(var + epsilon)
    return (x * factor + (bias - mean * factor)).astype(x.dtype)


def update(running: Moments, batch: Moments, count: int, momentum: float = MOMENTUM) -> Moments:
    """Running statistics after a batch whose moments were taken over `count` values a channel."""
    unbiased = count / max(count - 1, 1)
    old_mean, old_var = running
    mean, var = jax.lax.stop_gradient(batch)
    return (
        momentum * old_mean + (1 - momentum) * mean,
        momentum * old_var + (1 - momentum) * unbiased * var,
    )
