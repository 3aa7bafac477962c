"""3x3 convolutions by native code against `jax.lax.conv_general_dilated` and its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_jax.kernels import build, winograd
from adafuse_jax.train import mesh

NAMES = ("NHWC", "HWIO", "NHWC")
native = pytest.mark.usefixtures("compiler")


@pytest.fixture(scope="module")
def compiler():
    if not build.load():
        pytest.skip("no native code on this machine: it has no C++ compiler that can make it")


def xla(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=NAMES)


def drawn(seed, *shapes):
    random = np.random.default_rng(seed)
    return [jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes]


def problem(seed, n, h, w, inputs, outputs):
    """x, kernel, dy."""
    return drawn(seed, (n, h, w, inputs), (3, 3, inputs, outputs), (n, h, w, outputs))


@quick_jit
def expected(x, kernel, dy):
    """y, dx and dkernel."""
    y, gradients = jax.vjp(xla, x, kernel)
    return y, *gradients(dy)


def assert_close(found, wanted, atol=5e-6):
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=atol * np.abs(b).max())


@functools.cache
def levels():
    """Those that this CPU has."""
    x, kernel, _ = problem(0, 1, 2, 2, 16, 16)
    found = []
    for level in build.LEVELS:
        try:
            winograd.filtered(x, kernel, level=level).block_until_ready()
            found.append(level)
        except jax.errors.JaxRuntimeError as error:
            assert "level: expected instructions that this CPU has" in str(error)
    return found


SIDES, CHANNELS = st.integers(1, 9), st.integers(1, 9).map(lambda groups: 16 * groups)


@native
@settings(max_examples=20, deadline=None)
@given(st.data(), st.integers(1, 9), SIDES, SIDES, CHANNELS, CHANNELS, st.integers(0, 99))
def test_it_is_the_convolution_and_its_gradients(data, n, h, w, inputs, outputs, seed):
    level = data.draw(st.sampled_from(levels()))
    x, kernel, dy = problem(seed, n, h, w, inputs, outputs)
    found = (
        winograd.filtered(x, kernel, level=level),
        winograd.filtered(dy, kernel, turned=True, level=level),
        winograd.gradient(x, dy, level=level),
    )
    assert_close(found, expected(x, kernel, dy))


def test_levels_there_must_be():
    if build.load():
        assert levels()[:2] == ["best", "baseline"]


@native
def test_rounding_stays_near_that_of_a_direct_sum():
    x, kernel = drawn(0, (2, 8, 8, 128), (3, 3, 128, 16))
    exact = np.zeros((2, 8, 8, 16))
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i, j in np.ndindex(3, 3):
        exact += padded[:, i : i + 8, j : j + 8] @ np.asarray(kernel[i, j], np.float64)
    fast = winograd.filtered(x, kernel)
    assert np.abs(np.asarray(fast) - exact).max() < 2e-6 * np.abs(exact).max()


@native
def test_the_same_bits_each_time():
    x, kernel, dy = problem(0, 9, 13, 13, 64, 96)
    both = quick_jit(lambda: (winograd.filtered(x, kernel), winograd.gradient(x, dy)))
    first = both()
    for _ in range(5):
        for a, b in zip(both(), first, strict=True):
            np.testing.assert_array_equal(a, b)


@native
def test_several_devices_share_the_images():
    grid = mesh.make()
    x, kernel, dy = problem(0, 2 * grid.size, 8, 8, 64, 64)

    def run(kernel, x, dy):
        y, gradients = jax.vjp(winograd.convolution, x, kernel)
        return y, *gradients(dy)

    shardings = mesh.replicated(grid), mesh.by_clip(grid), mesh.by_clip(grid)
    arguments = [jax.device_put(a, s) for a, s in zip((kernel, x, dy), shardings, strict=True)]
    compiled = quick_jit(run, in_shardings=shardings).lower(*arguments).compile()
    y, dx, dkernel = compiled(*arguments)
    assert y.sharding.is_equivalent_to(mesh.by_clip(grid), 4)
    assert dx.sharding.is_equivalent_to(mesh.by_clip(grid), 4)
    assert "all-gather" not in compiled.as_text()
    assert_close((y, dx, dkernel), expected(x, kernel, dy))


@native
def test_over_another_axis():
    x, kernel, _ = problem(0, 3, 4, 4, 16, 16)
    found = jax.vmap(winograd.filtered, (0, None))(x[:, None], kernel)
    assert_close([found[:, 0]], [xla(x, kernel)])


# Where it is used, and what is computed otherwise, through the module that calls `conv`.
@pytest.mark.parametrize(
    ("channels", "options", "dtype", "used"),
    [
        ((64, 80), {"padding": ((1, 1), (1, 1))}, jnp.float32, True),
        ((80, 64), {"padding": "SAME"}, jnp.float32, True),
        ((64, 64), {"padding": "SAME"}, jnp.bfloat16, False),
        ((64, 64), {"padding": "VALID"}, jnp.float32, False),
        ((64, 64), {"padding": "SAME", "kernel_dilation": 2}, jnp.float32, False),
        ((128, 128), {"padding": "SAME", "feature_group_count": 2}, jnp.float32, False),
        ((64, 64), {"padding": "SAME", "strides": 2}, jnp.float32, False),
        ((64, 65), {"padding": "SAME"}, jnp.float32, False),
        ((64, 16), {"padding": "SAME"}, jnp.float32, False),
        ((64, 64), {"padding": "SAME", "kernel_size": (1, 1)}, jnp.float32, False),
    ],
)
def test_modules_compute_the_same(channels, options, dtype, used, monkeypatch):
    options = {"kernel_size": (3, 3), **options}
    (x,) = drawn(1, (4, 8, 8, channels[0]))
    x = x.astype(dtype)
    calls, convolution = [], winograd.convolution
    monkeypatch.setattr(winograd, "convolution", lambda *a: calls.append(a) or convolution(*a))
    results = []
    for function in (winograd.conv, jax.lax.conv_general_dilated):
        layer = nnx.Conv(*channels, **options, conv_general_dilated=function, dtype=dtype, rngs=nnx.Rngs(0))
        graph, params = nnx.split(layer)

        def loss(params, x, graph=graph):
            return jnp.square(nnx.merge(graph, params)(x).astype(jnp.float32)).mean()

        results.append(jax.tree.leaves(quick_jit(jax.grad(loss, (0, 1)))(params, x)))
    assert len(calls) == used
    assert_close(*([np.asarray(a, np.float32) for a in r] for r in results), atol=1e-5)


def test_few_tiles_are_xlas(monkeypatch):
    monkeypatch.setattr(winograd, "convolution", None)
    x, kernel = drawn(2, (1, 8, 8, 64), (3, 3, 64, 64))
    found = winograd.conv(x, kernel, (1, 1), "SAME", dimension_numbers=NAMES)
    np.testing.assert_array_equal(found, xla(x, kernel))


def test_without_gradients_it_is_xlas_and_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(build, "load", None)
    x, kernel = drawn(2, (4, 8, 8, 64), (3, 3, 64, 64))
    found = winograd.conv(x, kernel, (1, 1), "SAME", dimension_numbers=NAMES)
    np.testing.assert_array_equal(found, xla(x, kernel))


def test_without_native_code_it_is_xlas(monkeypatch):
    monkeypatch.setattr(build, "load", lambda: False)
    x, kernel, dy = problem(0, 4, 8, 8, 64, 64)
    y, gradients = jax.vjp(winograd.convolution, x, kernel)
    assert_close((y, *gradients(dy)), expected(x, kernel, dy), atol=1e-6)


@native
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
            call().block_until_ready()
