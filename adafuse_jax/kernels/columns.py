"""Which channels of which frame are computed, and where they lie: the index lists of `kernels.pallas_pair`.

A frame's channels that are kept there or reused at the next (paper, Eq. 5) are written side by side, in this
order: kept alone, kept and reused, reused alone. So what the frame itself reads is one run of columns, the
first two groups, and what the next frame reads of it another, the last two; no channel is copied. Each group
is filled up with empty columns to a multiple of 16, so that loads are aligned; these are computed as zeros.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int8, Int32

from adafuse_jax.ops import actions as act

ALIGNED = 16  # columns: 32 bytes of bfloat16
SKIP, REUSE, KEEP = (act.ALL.index(action) for action in ("skip", "reuse", "keep"))  # as `block.codes`


class Columns(NamedTuple):
    """Of the frames of clips, one clip after the other; runs of columns in units of `ALIGNED`.

    Attributes:
        channels: of each column; the number of channels, c, where it is empty.
        needed: where the columns to compute end.
        kept: where those end that this frame reads, from 0.
        shared: where those begin that the next frame reads, up to `needed`.
    """

    channels: Int32[Array, "n width"]
    needed: Int32[Array, " n"]
    kept: Int32[Array, " n"]
    shared: Int32[Array, " n"]


def columns_of(actions: Int8[Array, "b t c"], block: int) -> Columns:
    """Lists the columns, on the device: shapes are static, the counts are data.

    Args:
        actions: from `block.codes`. Nothing is reused at a clip's first frame: there zeros are.
        block: `width` is a multiple of it.
    """
    b, t, c = actions.shape
    keep = actions == KEEP
    after = jnp.pad(actions[:, 1:] == REUSE, ((0, 0), (0, 1), (0, 0)))
    groups = jnp.stack([keep & ~after, keep & after, ~keep & after]).reshape(3, b * t, c)
    rank = jnp.cumsum(groups, -1, dtype=jnp.int32)
    filled = -(-rank[..., -1] // ALIGNED)
    ends = jnp.cumsum(filled, 0)
    column = jnp.where(groups, ((ends - filled) * ALIGNED)[..., None] + rank - 1, 0).sum(0)
    width = -(-(c + 3 * (ALIGNED - 1)) // block) * block
    column = jnp.where(groups.any(0), column, width)  # beyond the last: dropped
    frames, numbers = jnp.arange(b * t)[:, None], jnp.arange(c, dtype=jnp.int32)
    empty = jnp.full((b * t, width), c, jnp.int32)
    channels = empty.at[frames, column].set(jnp.broadcast_to(numbers, column.shape), mode="drop")
    return Columns(channels, needed=ends[2], kept=ends[1], shared=ends[0])
