"""Batch normalisation as PyTorch computes it (its running variance is the unbiased one).

Over the whole batch, or over each of several groups of its clips alone, as one process a device with a batch
of its own does it: the published runs took their statistics over 16 clips (reference.md, "Optimiser").
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-5
MOMENTUM = 0.9  # share of the old running value that stays; 0.1 in PyTorch's sense

Moments = tuple[Float[Array, "*groups c"], Float[Array, "*groups c"]]


def moments(x: Float[Array, "*n c"], groups: int = 1) -> Moments:
    """Mean and biased variance over all axes but the last, in float32 at least.

    With several groups one row for each: the first part of the leading axis, the second, and so on.
    """
    if groups > 1:
        return jax.vmap(moments)(_parts(x, groups))
    x = _rows(x)
    mean = x.mean(0)
    return mean, jnp.square(x - mean).mean(0)


def normalize(
    x: Float[Array, "*n c"],
    statistics: Moments,
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    epsilon: float = EPSILON,
) -> Float[Array, "*n c"]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, in the type of x; see `moments` for groups."""
    mean, var = statistics
    if mean.ndim > 1:
        one = jax.vmap(lambda part, its: normalize(part, its, scale, bias, epsilon))
        return one(_parts(x, len(mean)), statistics).reshape(x.shape)
    factor = scale * jax.lax.rsqrt(var + epsilon)
    return (x * factor + (bias - mean * factor)).astype(x.dtype)


def batch_norm(
    x: Float[Array, "*n c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    epsilon: float = EPSILON,
    groups: int = 1,
) -> tuple[Float[Array, "*n c"], Moments]:
    """`normalize` by the moments of x itself, and these; see `moments` for groups."""
    if groups == 1:
        return _batch_norm(x, scale, bias, epsilon)
    one = jax.vmap(lambda part: _batch_norm(part, scale, bias, epsilon))
    y, statistics = one(_parts(x, groups))
    return y.reshape(x.shape), statistics


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _batch_norm(x, scale, bias, epsilon):
    # The gradient keeps x alone and takes two sums over it; JAX's own keeps x - mean too and takes five.
    statistics = moments(x)
    return normalize(x, statistics, scale, bias, epsilon), statistics


def _forward(x, scale, bias, epsilon):
    y, statistics = _batch_norm(x, scale, bias, epsilon)
    return (y, statistics), (x, scale, bias, statistics)


def _backward(epsilon, kept, gradients):
    x, scale, bias, (mean, var) = kept
    dy, (dmean, dvar) = gradients
    shape, dtype = x.shape, x.dtype
    x, dy = _rows(x), _rows(dy)
    factor = jax.lax.rsqrt(var + epsilon)
    dbias = dy.sum(0)
    dscale = (dy * (x - mean)).sum(0) * factor
    # Through y at fixed moments, through y by the moments, and through the moments that are handed out.
    constant = (dmean - scale * factor * dbias) / len(x)
    slope = (2 * dvar - scale * jnp.square(factor) * dscale) / len(x)
    dx = scale * factor * dy + (x - mean) * slope + constant
    return dx.reshape(shape).astype(dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


_batch_norm.defvjp(_forward, _backward)


def _rows(x: Float[Array, "*n c"]) -> Float[Array, "m c"]:
    """In float32 at least, all axes but the last as one."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(-1, x.shape[-1])
    # XLA would sum over the original axes, which is ten times slower on the CPU than over one.
    return jax.lax.optimization_barrier(x) if jax.default_backend() == "cpu" else x


def update(running: Moments, batch: Moments, count: int, momentum: float = MOMENTUM) -> Moments:
    """Running statistics after a batch whose moments were taken over `count` values a channel.

    Of groups the mean of their moments counts. (PyTorch's DataParallel keeps those of the first group: the
    same on average, noisier.)
    """
    if batch[0].ndim > 1:
        count //= len(batch[0])
        batch = jax.tree.map(lambda moment: moment.mean(0), batch)
    unbiased = count / max(count - 1, 1)
    old_mean, old_var = running
    mean, var = jax.lax.stop_gradient(batch)
    return (
        momentum * old_mean + (1 - momentum) * mean,
        momentum * old_var + (1 - momentum) * unbiased * var,
    )


def _parts(x: Float[Array, "..."], groups: int) -> Float[Array, "..."]:
    return x.reshape(groups, -1, *x.shape[1:])
