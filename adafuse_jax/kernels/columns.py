"""Which channels of which frame are computed, and where they lie: the index lists of `kernels.pallas_pair`.

A frame's channels that are kept there or reused at the next (paper, Eq. 5) are written side by side, in this
order: kept alone, kept and reused, reused alone. So what the frame itself reads is one run of columns, the first
two groups, and what the next frame reads of it another, the last two; no channel is copied. Each group is
filled up with empty columns to a multiple of 16, so that loads are aligned; these are computed as zeros.
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
    groups = [group.reshape(b * t, c) for group in (keep & ~after, keep & after, ~keep & after)]
    width = -(-(c + 3 * (ALIGNED - 1)) // block) * block
    column, ends = width, [jnp.zeros(b * t, jnp.int32)]  # beyond the last: dropped
    for group in groups:
        rank = jnp.cumsum(group, -1, dtype=jnp.int32)
        column = jnp.where(group, (ALIGNED * ends[-1])[:, None] + rank - 1, column)
        ends.append(ends[-1] + -(-rank[:, -1] // ALIGNED))
    frames, numbers = jnp.arange(b * t)[:, None], jnp.arange(c, dtype=jnp.int32)
    empty = jnp.full((b * t, width), c, jnp.int32)
    channels = empty.at[frames, column].set(jnp.broadcast_to(numbers, column.shape), mode="drop")
    return Columns(channels, needed=ends[3], kept=ends[2], shared=ends[1])
