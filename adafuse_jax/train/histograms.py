"""How differently clips and frames are treated: histograms of the share of channels that took an action."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from adafuse_jax.train.losses import weighted_sum

BINS = 10
EDGES = np.linspace(0, 1, BINS + 1)


def of_shares(
    policy: Float[Array, "b t c actions"], weights: Float[Array, " b"]
) -> Float[Array, "actions bins"]:
    """Counts the frames of a site by the share of its channels that took each action.

    Bin i holds the shares from i/10 to less than (i + 1)/10, the last one also 1. A policy that always does
    the same has all frames in one bin of each action, however many channels it keeps.

    Args:
        policy: one-hot decisions.
        weights: of the clips: 1, or 0 for padding.
    """
    # Integers, so that no rounding moves a share that lies on an edge.
    counts = jnp.round(policy.astype(jnp.float32).sum(2)).astype(jnp.int32)
    bins = jnp.clip(counts * BINS // policy.shape[2], 0, BINS - 1)
    return weighted_sum(jax.nn.one_hot(bins, BINS).sum(1), weights)
