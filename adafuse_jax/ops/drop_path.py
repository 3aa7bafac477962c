"""Stochastic depth: in training, a residual branch is left out at random."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def drop_path(x: Float[Array, "b t h w c"], key: Key[Array, ""], rate: float) -> Float[Array, "b t h w c"]:
    """Zeros each frame with probability `rate`, and divides the others by 1 - rate: the mean stays.

    Source: Huang et al., "Deep networks with stochastic depth", ECCV 2016, scaled as in EfficientNet, whose
    unit is the image: here the frame.
    """
    kept = jax.random.bernoulli(key, 1 - rate, (*x.shape[:2], 1, 1, 1))
    return jnp.where(kept, x / (1 - rate), 0)
