"""Winograd's filtering by native code against `jax.lax.conv_general_dilated` and its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolutions import assert_close, drawn, expected, levels_of, problem, xla
from helpers import quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_jax.kernels import winograd

pytestmark = pytest.mark.usefixtures("native")
SIDES, CHANNELS = st.integers(1, 9), st.integers(1, 9).map(lambda groups: 16 * groups)


@functools.cache
def levels():
    return levels_of(lambda level: winograd.filtered(*drawn(0, (1, 2, 2, 16), (3, 3, 16, 16)), level=level))


@settings(max_examples=20, deadline=None)
@given(st.data(), SIDES, SIDES, SIDES, CHANNELS, CHANNELS, st.integers(0, 99))
def test_it_is_the_convolution_and_its_gradients(data, n, h, w, inputs, outputs, seed):
    level = data.draw(st.sampled_from(levels()))
    x, kernel, dy = problem(seed, n, h, w, inputs, outputs)
    found = (
        winograd.filtered(x, kernel, level=level),
        winograd.filtered(dy, kernel, turned=True, level=level),
        winograd.gradient(x, dy, level=level),
    )
    assert_close(found, expected(x, kernel, dy))


def test_rounding_stays_near_that_of_a_direct_sum():
    x, kernel = drawn(0, (2, 8, 8, 128), (3, 3, 128, 16))
    exact = np.zeros((2, 8, 8, 16))
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i, j in np.ndindex(3, 3):
        exact += padded[:, i : i + 8, j : j + 8] @ np.asarray(kernel[i, j], np.float64)
    fast = winograd.filtered(x, kernel)
    assert np.abs(np.asarray(fast) - exact).max() < 2e-6 * np.abs(exact).max()


def test_the_same_bits_each_time():
    x, kernel, dy = problem(0, 9, 13, 13, 64, 96)
    both = quick_jit(lambda: (winograd.filtered(x, kernel), winograd.gradient(x, dy)))
    first = both()
    for _ in range(5):
        for a, b in zip(both(), first, strict=True):
            np.testing.assert_array_equal(a, b)


def test_over_another_axis():
    x, kernel = drawn(0, (3, 4, 4, 16), (3, 3, 16, 16))
    found = jax.vmap(winograd.filtered, (0, None))(x[:, None], kernel)
    assert_close([found[:, 0]], [xla(x, kernel)])


def test_mistakes():
    x, kernel, dy = problem(0, 2, 4, 4, 16, 32)
    wrong = {
        "channels: expected multiples of 16": lambda: winograd.gradient(x[..., :8], dy),
        "weights: expected": lambda: winograd.filtered(dy, kernel),
        "expected outputs as high and wide": lambda: winograd.gradient(x, dy[:1]),
        "sizes: expected 1 to": lambda: winograd.gradient(x[:0], dy[:0]),
    }
    for message, call in wrong.items():
        with pytest.raises(jax.errors.JaxRuntimeError, match=f"adafuse_jax: {message}"):
            jnp.asarray(call()).block_until_ready()
