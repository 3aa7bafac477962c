"""Convolutions of any stride by native code against `jax.lax.conv_general_dilated` and its gradients."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from convolutions import assert_close, drawn, expected, levels_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adafuse_jax.kernels import direct

pytestmark = pytest.mark.usefixtures("native")
SMALL = direct.Geometry(size=(4, 4), kernel=(3, 3), strides=(2, 2), before=(1, 1), out=(2, 2))


@functools.cache
def levels():
    x, kernel = drawn(0, (1, 4, 4, 16), (3, 3, 16, 16))
    return levels_of(lambda level: direct.convolved(x, kernel, dataclasses.replace(SMALL, level=level)))


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(0, 99))
def test_it_is_the_convolution_and_its_gradients(data, seed):
    def draw(least, most, name):
        return data.draw(st.integers(least, most), label=name)

    size = draw(1, 12, "h"), draw(1, 12, "w")
    kernel = draw(1, 5, "y"), draw(1, 5, "x")
    strides = tuple(draw(1, k, "stride") for k in kernel)
    pads = tuple((draw(0, k - 1, "before"), draw(0, k + 1, "after")) for k in kernel)
    out = tuple((s + sum(p) - k) // t + 1 for s, p, k, t in zip(size, pads, kernel, strides, strict=True))
    assume(min(out) > 0)
    n, inputs, outputs = draw(1, 3, "n"), draw(1, 40, "inputs"), 16 * draw(1, 6, "outputs")
    inputs = inputs if draw(0, 1, "any") else 16 * -(-inputs // 16)
    arguments = drawn(seed, (n, *size, inputs), (*kernel, inputs, outputs), (n, *out, outputs))
    x, weights, dy = arguments
    before = tuple(pad[0] for pad in pads)
    level = data.draw(st.sampled_from(levels()))
    at = direct.Geometry(size, kernel, strides, before, out, level)
    y, dx, dweights = expected(*arguments, strides, pads)
    assert_close((direct.convolved(x, weights, at), direct.gradient(x, dy, at)), (y, dweights))
    if inputs % 16 == 0:
        assert_close([direct.transposed(dy, weights, at)], [dx])


def test_the_same_bits_each_time():
    x, kernel, dy = drawn(0, (9, 13, 13, 48), (3, 3, 48, 96), (9, 7, 7, 96))
    at = direct.Geometry((13, 13), (3, 3), (2, 2), (1, 1), (7, 7))
    both = jax.jit(
        lambda: (
            direct.convolved(x, kernel, at),
            direct.transposed(dy, kernel, at),
            direct.gradient(x, dy, at),
        )
    )
    first = both()
    for _ in range(5):
        for a, b in zip(both(), first, strict=True):
            np.testing.assert_array_equal(a, b)


def test_mistakes():
    x, kernel, dy = drawn(0, (2, 4, 4, 16), (3, 3, 16, 32), (2, 2, 2, 32))
    larger = dataclasses.replace(SMALL, strides=(4, 2))
    wrong = {
        "channels: expected multiples of 16": lambda: direct.convolved(x, kernel[..., :24], SMALL),
        "weights: expected": lambda: direct.convolved(x[..., :8], kernel, SMALL),
        "kernel: expected up to 31, no smaller": lambda: direct.gradient(x, dy, larger),
        "sizes: expected 1 to": lambda: direct.gradient(x[:0], dy[:0], SMALL),
    }
    for message, call in wrong.items():
        with pytest.raises(jax.errors.JaxRuntimeError, match=f"adafuse_jax: {message}"):
            call().block_until_ready()
