"""Pooling against windows taken one by one, as PyTorch's documentation defines them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_jax.ops import pooling


def starts(size, window, stride, padding):
    """Windows up to the end of the padded input, each starting in the left padding or the input."""
    found = [-padding]
    while found[-1] + window < size + padding:
        found.append(found[-1] + stride)
    return [s for s in found if s < size]


def windows(x, window, stride, padding):
    """All windows of (n, h, w, c), each with its pixels inside of the input."""
    _, h, w, _ = x.shape
    return [
        [x[:, max(y, 0) : y + window, max(z, 0) : z + window] for z in starts(w, window, stride, padding)]
        for y in starts(h, window, stride, padding)
    ]


def images(h, w, seed):
    return np.random.default_rng(seed).standard_normal((2, h, w, 3)).astype(np.float32)


SIDES = st.integers(2, 9)


@settings(max_examples=40, deadline=None)
@given(
    SIDES, SIDES, st.sampled_from([(3, 2, 0), (3, 1, 1), (3, 2, 1), (2, 2, 0), (3, 3, 1)]), st.integers(0, 99)
)
def test_max_pool_in_ceil_mode(h, w, geometry, seed):
    x = images(h, w, seed) - 10  # a zero from outside would be the largest
    wanted = [[pixels.max((1, 2)) for pixels in row] for row in windows(x, *geometry)]
    found = pooling.max_pool(jnp.asarray(x), *geometry)
    assert found.shape[1:3] == tuple(pooling.ceil_out(s, *geometry) for s in (h, w))
    np.testing.assert_array_equal(found, np.stack([np.stack(row, 1) for row in wanted], 1))


@settings(max_examples=20, deadline=None)
@given(SIDES, SIDES, st.integers(0, 99))
def test_avg_pool_counts_the_padding(h, w, seed):
    x = images(h, w, seed)
    wanted = [[pixels.sum((1, 2)) / 9 for pixels in row] for row in windows(x, 3, 1, 1)]
    found = pooling.avg_pool(jnp.asarray(x))
    np.testing.assert_allclose(found, np.stack([np.stack(row, 1) for row in wanted], 1), atol=1e-6)


@pytest.mark.parametrize(("size", "out"), [(112, 56), (113, 56), (56, 28), (28, 14), (7, 3), (2, 1)])
def test_sides_of_the_3x3_pool_of_stride_2(size, out):
    assert pooling.ceil_out(size, 3, 2) == out


def test_types_stay():
    x = jnp.ones((1, 4, 4, 2), jnp.bfloat16)
    assert pooling.max_pool(x).dtype == pooling.avg_pool(x).dtype == jnp.bfloat16


@settings(max_examples=15, deadline=None)
@given(
    SIDES,
    SIDES,
    st.sampled_from([(3, 2, 0), (3, 1, 1), (3, 2, 1), (2, 2, 0), (3, 3, 1)]),
    st.booleans(),
    st.integers(0, 99),
)
def test_max_pools_gradient_goes_to_the_first_of_the_largest(h, w, geometry, ceil, seed):
    if not ceil and min(h, w) + 2 * geometry[2] < geometry[0]:
        return
    window, stride, padding = geometry
    x = jnp.asarray(images(h, w, seed).round())  # many are alike

    def run(x):
        y, gradient = jax.vjp(lambda x: pooling.max_pool(x, *geometry, ceil=ceil), x)
        dy = jnp.arange(1.0, y.size + 1).reshape(y.shape)
        return y, dy, gradient(dy)[0]

    y, dy, dx = map(np.asarray, quick_jit(run)(x))
    np.testing.assert_array_equal(y, pooling.max_pool(x, *geometry, ceil=ceil))
    wanted = np.zeros(x.shape, np.float32)
    for n, i, j, c in np.ndindex(y.shape):
        top, left = max(0, i * stride - padding), max(0, j * stride - padding)
        seen = np.asarray(x)[n, top : i * stride - padding + window, left : j * stride - padding + window, c]
        p, q = np.unravel_index(seen.argmax(), seen.shape)
        wanted[n, top + p, left + q, c] += dy[n, i, j, c]
    np.testing.assert_allclose(dx, wanted, rtol=1e-6)


def test_max_pool_passes_nan_on():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan)
    y, _ = jax.vjp(pooling.max_pool, x)
    assert jnp.isnan(y).any()
    np.testing.assert_array_equal(y, pooling.max_pool(x))
