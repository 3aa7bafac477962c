"""Batch normalisation over groups is that of each group by itself."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_jax.ops import norm


@settings(deadline=None)
@given(groups=st.integers(1, 4), part=st.integers(1, 3), inner=st.integers(1, 5), seed=st.integers(0, 99))
def test_groups_are_batches_of_their_own(groups, part, inner, seed):
    random = np.random.default_rng(seed)
    x = jnp.asarray(random.standard_normal((groups * part, inner, 3)), jnp.float32)
    scale, bias = (jnp.asarray(random.standard_normal(3), jnp.float32) for _ in range(2))
    running = jnp.zeros(3), jnp.ones(3)
    statistics = norm.moments(x, groups)
    found = norm.normalize(x, statistics, scale, bias)
    updated = norm.update(running, statistics, x.size // 3)
    alone, updates = [], []
    for own in np.split(np.asarray(x), groups):
        moments = norm.moments(jnp.asarray(own))
        alone.append(norm.normalize(jnp.asarray(own), moments, scale, bias))
        updates.append(norm.update(running, moments, own.size // 3))
    np.testing.assert_allclose(found, np.concatenate(alone), rtol=1e-4, atol=1e-4)
    for i in range(2):
        np.testing.assert_allclose(updated[i], np.mean([u[i] for u in updates], 0), rtol=1e-5, atol=1e-6)
