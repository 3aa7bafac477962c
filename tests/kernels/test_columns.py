"""Index lists name each channel where it is read, and only what is read."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from helpers import quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_jax.kernels.columns import ALIGNED, columns_of
from adafuse_jax.ops import actions as act

REUSE, KEEP = act.ALL.index("reuse"), act.ALL.index("keep")


listed = functools.partial(quick_jit, static_argnums=1)(columns_of)

# Few shapes, as each is compiled; many policies.
SHAPES = [((1, 1, 1), 16), ((2, 3, 16), 16), ((3, 2, 17), 16), ((2, 4, 70), 64)]
SHARES = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.3, 0.3, 0.4), (0.05, 0.9, 0.05)]


@settings(deadline=None)
@given(st.sampled_from(SHAPES), st.sampled_from(SHARES), st.integers(0, 999))
def test_runs_hold_what_each_frame_reads(shape, shares, seed):
    (b, t, c), block = shape
    actions = np.random.default_rng(seed).choice(3, (b, t, c), p=shares).astype(np.int8)
    found = jax.device_get(listed(jnp.asarray(actions), block))
    assert found.channels.shape[1] % block == 0
    for n in range(b * t):
        now = actions[n // t, n % t]
        after = actions[n // t, n % t + 1] if n % t + 1 < t else np.zeros_like(now)
        channels = found.channels[n]
        needed, kept, shared = (ALIGNED * int(of[n]) for of in found[1:])
        read = {"now": channels[:kept], "after": channels[shared:needed], "never": channels[needed:]}
        wanted = {"now": now == KEEP, "after": after == REUSE, "never": np.zeros(c, bool)}
        for when, of in read.items():
            np.testing.assert_array_equal(np.sort(of[of < c]), np.flatnonzero(wanted[when]), err_msg=when)
        assert len(set(channels[channels < c])) == (channels < c).sum()  # none is computed twice
        assert needed < (wanted["now"] | wanted["after"]).sum() + 3 * ALIGNED
