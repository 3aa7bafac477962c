"""Batch normalisation: its gradient against JAX's of its equation, and over groups as of each by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit
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
    found, taken = norm.batch_norm(x, scale, bias, groups=groups)
    np.testing.assert_allclose(taken, statistics, rtol=1e-6)
    updated = norm.update(running, statistics, x.size // 3)
    alone, updates = [], []
    for own in np.split(np.asarray(x), groups):
        moments = norm.moments(jnp.asarray(own))
        alone.append(norm.normalize(jnp.asarray(own), moments, scale, bias))
        updates.append(norm.update(running, moments, own.size // 3))
    np.testing.assert_allclose(found, np.concatenate(alone), rtol=1e-4, atol=1e-4)
    for i in range(2):
        np.testing.assert_allclose(updated[i], np.mean([u[i] for u in updates], 0), rtol=1e-5, atol=1e-6)


def plain(x, scale, bias):
    """Equation by equation, over the original axes."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    var = jnp.square(x - mean).mean(axes)
    return (x - mean) / jnp.sqrt(var + norm.EPSILON) * scale + bias, (mean, var)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 6), st.integers(0, 99))
def test_gradients_through_output_and_moments(axes, channels, seed):
    random = np.random.default_rng(seed)
    x, dy = (jnp.asarray(random.standard_normal((*axes, channels)), jnp.float32) for _ in range(2))
    scale, bias, dmean, dvar = jnp.asarray(random.standard_normal((4, channels)), jnp.float32)

    def all_of(function):
        y, gradients = jax.vjp(function, x, scale, bias)
        return y, gradients((dy, (dmean, dvar)))

    found, wanted = quick_jit(lambda: (all_of(norm.batch_norm), all_of(plain)))()
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        # Of few values all may be nearly alike: their variance is that of the rounding.
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3 * (1 + float(jnp.abs(b).max())))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_sums_in_float32(dtype):
    # 4096 values of 1 and a few of 2: half precision stops counting at 256 or 2048.
    x = jnp.ones((64, 66, 1), dtype).at[:, 64:].set(2)
    y, (mean, var) = norm.batch_norm(x, jnp.ones(1), jnp.zeros(1))
    share = 2 / 66
    assert y.dtype == dtype
    np.testing.assert_allclose(mean, 1 + share, rtol=1e-6)
    np.testing.assert_allclose(var, share * (1 - share), rtol=1e-5)
    gradient = jax.grad(lambda x: norm.batch_norm(x, jnp.ones(1), jnp.zeros(1))[0].sum().astype(jnp.float32))
    assert gradient(x).dtype == dtype
