"""A convolution with channel gating, for the baseline "CGNet"; see `adafuse_jax.ops.gating`.

Deviations from Hua et al. 2019, as in the published AdaFuse code: one group, no channel shuffle, a threshold
that starts at 0 and a target of 1. Both paths are computed; what the gate saves is counted.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from adafuse_jax.errors import UserError
from adafuse_jax.layers import BatchNorm
from adafuse_jax.ops import gating

ACTIONS = ("skip", "keep")  # of the part of the inputs that the gate closes or opens
# MACs a frame that the published code takes for a gated net of so many blocks: rounded, or another net's.
PUBLISHED_MACS = {8: 1_818_800_000, 16: 4_280_000_000}


class GatedConv(nnx.Module):
    """A convolution on clips whose first inputs/partitions channels decide, pixel by pixel, on the others.

    Args:
        conv: the convolution, without bias.
        partitions: the share of the inputs that is always computed is 1 / partitions.

    Raises:
        UserError: unless the partitions divide the inputs.
    """

    def __init__(self, conv: nnx.Conv, partitions: int):
        if partitions < 2 or conv.in_features % partitions:
            raise UserError(
                f"partitions: expected 2 or more, a divisor of {conv.in_features} inputs, found {partitions}"
            )
        self.conv, self.partitions = conv, partitions
        self.threshold = nnx.Param(jnp.zeros(conv.out_features))
        self.bn = BatchNorm(conv.out_features, affine=False)

    def __call__(
        self, x: Float[Array, "b t h w i"], train: bool
    ) -> tuple[Float[Array, "b t y x c"], Float[Array, "b t c 2"]]:
        """The outputs, and per channel the share of the pixels where the gate was closed and open."""
        frames = x.reshape(-1, *x.shape[2:])
        seen = jnp.arange(x.shape[-1]) < x.shape[-1] // self.partitions
        partial = self.conv(jnp.where(seen, frames, 0))
        opened = gating.gate(self.bn(partial, train), self.threshold[...])
        out = gating.combine(opened, self.conv(frames), partial)
        share = opened.mean((1, 2)).reshape(*x.shape[:2], -1)
        return out.reshape(*x.shape[:2], *out.shape[1:]), jnp.stack([1 - share, share], -1)

    def saved(self, macs: int) -> int:
        """MACs that a closed gate saves of the convolution's."""
        return macs * (self.partitions - 1) // self.partitions
