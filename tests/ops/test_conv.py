"""Convolutions with gradients of their own against `jax.lax.conv_general_dilated` and its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolutions import drawn, module_gradients
from helpers import quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_jax.ops import conv

xla = functools.partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def with_gradients(function):
    """(x, kernel, dy) -> output, dx, dkernel."""

    def run(x, kernel, dy):
        y, gradients = jax.vjp(function, x, kernel)
        return y, *gradients(dy)

    return quick_jit(run)


def assert_close(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))


SIDES, CHANNELS = st.integers(1, 7), st.integers(1, 5)


@settings(max_examples=5, deadline=None)
@given(SIDES, SIDES, CHANNELS, CHANNELS, st.sampled_from([(1, 1), (2, 2), (1, 3)]), st.integers(0, 99))
def test_pointwise_is_the_1x1_convolution(h, w, inputs, outputs, strides, seed):
    p, q = -(-h // strides[0]), -(-w // strides[1])
    arguments = drawn(seed, (2, h, w, inputs), (1, 1, inputs, outputs), (2, p, q, outputs))
    wanted = with_gradients(lambda x, k: xla(x, k, strides, "VALID"))(*arguments)
    assert_close(with_gradients(lambda x, k: conv.pointwise(x, k, strides))(*arguments), wanted)


@settings(max_examples=5, deadline=None)
@given(
    st.integers(3, 9),
    st.integers(3, 9),
    CHANNELS,
    st.sampled_from([(1, 1), (2, 2), (1, 3)]),
    st.sampled_from([((0, 0), (0, 0)), ((1, 1), (1, 1)), ((0, 1), (2, 0))]),
    st.integers(0, 99),
)
def test_depthwise_is_the_convolution_by_groups_of_one(h, w, channels, strides, pads, seed):
    x, kernel = drawn(seed, (2, h, w, channels), (3, 3, 1, channels))

    def run(function):
        y, gradients = jax.vjp(function, x, kernel)
        return y, *gradients(jnp.sin(jnp.arange(1.0, y.size + 1)).reshape(y.shape))

    wanted = quick_jit(lambda: run(lambda x, k: xla(x, k, strides, pads, feature_group_count=channels)))()
    assert_close(quick_jit(lambda: run(lambda x, k: conv.depthwise(x, k, strides, pads)))(), wanted)


# Where each way is taken, and what XLA alone can do, through the module that calls `conv`.
@pytest.mark.parametrize(
    ("channels", "options", "dtype", "used"),
    [
        ((8, 8), {"padding": "SAME"}, jnp.float32, None),
        ((8, 8), {"padding": "SAME", "feature_group_count": 8}, jnp.float32, "depthwise"),
        ((8, 8), {"padding": "SAME", "feature_group_count": 8}, jnp.bfloat16, None),
        ((8, 8), {"padding": "SAME", "feature_group_count": 8, "kernel_dilation": 2}, jnp.float32, None),
        ((8, 8), {"padding": "SAME", "strides": 2, "feature_group_count": 8}, jnp.float32, "depthwise"),
        ((8, 16), {"padding": "SAME", "feature_group_count": 8}, jnp.float32, None),
        ((8, 4), {"kernel_size": (1, 1), "strides": 2, "padding": "SAME"}, jnp.float32, "pointwise"),
        ((8, 4), {"kernel_size": (1, 1), "padding": ((1, 1), (1, 1))}, jnp.float32, None),
    ],
)
def test_modules_compute_the_same(channels, options, dtype, used, monkeypatch):
    options = {"kernel_size": (3, 3), **options}
    x = drawn(1, (4, 8, 8, channels[0]))[0].astype(dtype)
    taken = []
    for name in ("pointwise", "depthwise"):
        way = getattr(conv, name)
        monkeypatch.setattr(
            conv, name, lambda *a, way=way, name=name, **o: taken.append(name) or way(*a, **o)
        )
    ways = (conv.conv, jax.lax.conv_general_dilated)
    results = [module_gradients(way, x, channels, dtype=dtype, **options) for way in ways]
    assert taken == ([used] if used else [])
    assert_close(*([np.asarray(a, np.float32) for a in r] for r in results))
