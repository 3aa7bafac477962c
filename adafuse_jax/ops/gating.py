"""Channel gating: a convolution's outputs from part of its inputs, from all of them only where it matters.

Source: Hua et al., "Channel Gating Neural Networks", NeurIPS 2019, section 3; gate and gradient as in the
published AdaFuse code (ops/cg_utils.py), where it is the baseline "CGNet".
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gate(
    partial: Float[Array, "*n c"], threshold: Float[Array, " c"], slope: float = 2.0
) -> Float[Array, "*n c"]:
    """1 where a normalised partial sum exceeds its channel's threshold, else 0.

    The gradient is that of sigmoid(slope * (partial - threshold)).
    """
    above = slope * (partial - threshold)
    soft = jax.nn.sigmoid(above)
    # soft - stop_gradient(soft) is exactly zero, so the value stays exactly 0 or 1.
    return (above > 0).astype(partial.dtype) + (soft - jax.lax.stop_gradient(soft))


def combine(
    opened: Float[Array, "*n c"], full: Float[Array, "*n c"], partial: Float[Array, "*n c"]
) -> Float[Array, "*n c"]:
    """The full sum where the gate opened, the partial sum elsewhere."""
    return opened * full + (1 - opened) * partial


def distance_to_target(threshold: Float[Array, " c"], target: float) -> Float[Array, ""]:
    """What CGNet's loss adds, before its weight: sum over channels of (threshold - target)^2."""
    return jnp.square(threshold - target).sum()
