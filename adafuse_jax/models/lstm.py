"""The paper's baseline "LSTM": an LSTM over frame features, whose state of each frame is classified."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from adafuse_jax.layers import uniform
from adafuse_jax.ops import costs, lstm


class LSTM(nnx.Module):
    """Frame features -> hidden states.

    Source: the paper, section 4, "LSTM", and AR-Net's code (Meng et al., ECCV 2020). Weights start uniform
    in +-1/sqrt(hidden), as PyTorch's LSTMCell.

    Args:
        in_features: of a frame.
        hidden: size of the state.
        rngs: for the initial weights.
    """

    def __init__(self, in_features: int, hidden: int, *, rngs: nnx.Rngs):
        self.in_features, self.features = in_features, hidden
        init = uniform(1 / math.sqrt(hidden))
        self.kernel_x = nnx.Param(init(rngs.params(), (in_features, 4 * hidden)))
        self.kernel_h = nnx.Param(init(rngs.params(), (hidden, 4 * hidden)))
        self.bias_x = nnx.Param(init(rngs.params(), (4 * hidden,)))
        self.bias_h = nnx.Param(init(rngs.params(), (4 * hidden,)))

    def __call__(self, x: Float[Array, "b t i"]) -> Float[Array, "b t h"]:
        return lstm.scan(x.astype(jnp.promote_types(x.dtype, jnp.float32)), self.weights)

    @property
    def weights(self) -> lstm.Weights:
        """Its arrays."""
        return lstm.Weights(self.kernel_x[...], self.kernel_h[...], self.bias_x[...], self.bias_h[...])

    @property
    def macs(self) -> int:
        """MACs of a frame; as published, multiplications and additions both count."""
        return costs.linear_macs(self.in_features + self.features, 4 * self.features)
