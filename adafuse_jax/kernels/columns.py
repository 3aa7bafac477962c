"""Which channels of which frame are computed, and where they lie: the index lists of `kernels.pallas_pair`.

A frame's channels that are kept there or reused at the next (paper, Eq. 5) are written side by side, in this
order: kept alone, kept and reused, reused alone. So what the frame itself reads is one run of columns, from the
first to `kept`, and what the next frame reads of it another, from `shared` to `needed`; no channel is copied.
The second group begins at a multiple of 16, for aligned loads: fewer than 16 columns before it hold zeros.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int8, Int32

from adafuse_jax.ops import actions as act

ALIGNED = 16  # columns: 32 bytes of bfloat16
SKIP, REUSE, KEEP = (act.ALL.index(action) for action in ("skip", "reuse", "keep"))  # as `block.codes`


class Columns(NamedTuple):
    """Of the frames of clips, one clip after the other.

    Attributes:
        channels: of each column; the number of channels, c, where a column has none.
        needed: columns to compute.
        kept: the first of them are read at this frame.
        shared: from here to `needed` they are read at the next, in units of `ALIGNED`.
    """

    channels: Int32[Array, "n width"]
    needed: Int32[Array, " n"]
    kept: Int32[Array, " n"]
    shared: Int32[Array, " n"]


def columns_of(actions: Int8[Array, "b t c"], block: int) -> Columns:
    """Lists the columns on the device: static shapes, the counts are data.

    Args:
        actions: from `block.codes`. Nothing is reused at a clip's first frame: zeros are, as in the scan.
        block: `width` is a multiple of it.
    """
    b, t, c = actions.shape
    keep = actions == KEEP
    after = jnp.pad(actions[:, 1:] == REUSE, ((0, 0), (0, 1), (0, 0)))
    groups = [g.reshape(b * t, c) for g in (keep & ~after, keep & after, ~keep & after)]
    alone, both, later = (g.sum(-1, dtype=jnp.int32) for g in groups)
    shared = -(-alone // ALIGNED)
    kept = shared * ALIGNED + both
    column = width = -(-(c + ALIGNED - 1) // block) * block  # beyond the last: dropped
    for group, start in zip(groups, (0 * alone, shared * ALIGNED, kept), strict=True):
        rank = jnp.cumsum(group, -1, dtype=jnp.int32) - 1
        column = jnp.where(group, start[:, None] + rank, column)
    frames, numbers = jnp.arange(b * t)[:, None], jnp.arange(c, dtype=jnp.int32)
    empty = jnp.full((b * t, width), c, jnp.int32)
    channels = empty.at[frames, column].set(jnp.broadcast_to(numbers, column.shape), mode="drop")
    return Columns(channels, kept + later, kept, shared)
