"""Pooling against windows taken one by one, as PyTorch's documentation defines them."""

import jax.numpy as jnp
import numpy as np
import pytest
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
