"""One native call gives what convolution, ReLU and pooling give, of any size, on any kind of CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from adafuse_jax.errors import UserError
from adafuse_jax.kernels.build import LEVELS
from adafuse_jax.kernels.stem import compact_stem, pack_stem
from adafuse_jax.ops.pooling import max_pool

pytestmark = pytest.mark.usefixtures("native")


def expected(x, kernel, bias, stride, pool):
    half = len(kernel) // 2
    numbers = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(
        x, kernel, (stride, stride), ((half, half),) * 2, dimension_numbers=numbers, precision="highest"
    )
    y = jax.nn.relu(y + bias)
    return max_pool(y, padding=1, ceil=False) if pool else y


def drawn(random, sizes, channels, kernel):
    shapes = ((*sizes, channels[0]), (kernel, kernel, *channels), channels[1:])
    return (random.standard_normal(shape).astype(np.float32) for shape in shapes)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_stem_is_its_parts(data):
    draw = data.draw
    sizes = draw(st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)), label="N, H, W")
    channels = draw(st.tuples(st.integers(1, 4), st.integers(1, 80)), label="channels")
    any_other = st.tuples(st.sampled_from([1, 3, 5, 7]), st.integers(1, 3))
    kernel, stride = draw(st.just((7, 2)) | any_other, label="kernel, stride")
    pool = draw(st.booleans(), label="pool")
    x, weights, bias = drawn(np.random.default_rng(draw(st.integers(0, 99))), sizes, channels, kernel)
    found = compact_stem(jnp.asarray(x), pack_stem(weights, bias, stride), channels[1], stride, pool)
    wanted = np.asarray(expected(x, weights, bias, stride, pool))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("level", LEVELS)
def test_every_kind_of_cpu_and_several_bands(level):
    x, weights, bias = drawn(np.random.default_rng(0), (1, 150, 180), (3, 72), 7)
    try:
        found = compact_stem(jnp.asarray(x), pack_stem(weights, bias, 2), 72, 2, True, level)
        found.block_until_ready()
    except jax.errors.JaxRuntimeError as error:
        assert "level: expected instructions that this CPU has" in str(error)
        pytest.skip(f"this CPU has no {level}")
    wanted = expected(x, weights, bias, 2, True)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("pool", [True, False])
def test_nan_is_seen(pool):
    x, weights, bias = drawn(np.random.default_rng(0), (2, 9, 9), (3, 5), 3)
    x[1, 4, 4, 0] = np.nan
    found = compact_stem(jnp.asarray(x), pack_stem(weights, bias, 2), 5, 2, pool)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected(x, weights, bias, 2, pool)))
    assert np.isnan(found[1]).any()


@pytest.mark.parametrize("pool", [True, False])
def test_nan_is_seen_by_tiles(pool):
    """Of 7x7 and stride 2: wherever it belongs, and no further than tiles of 3x3 outputs, pooled or not."""
    x, weights, bias = drawn(np.random.default_rng(0), (2, 40, 40), (3, 5), 7)
    x[1, 20, 20, 0] = np.nan
    found = np.isnan(compact_stem(jnp.asarray(x), pack_stem(weights, bias, 2), 5, 2, pool))
    wanted = np.isnan(expected(x, weights, bias, 2, pool))
    assert wanted.any() and (found | ~wanted).all()
    rows = np.flatnonzero(wanted[1].any((1, 2)))
    near = slice(max(rows[0] - 2, 0), rows[-1] + 3)
    found[1, near, near] = False
    assert not found.any()


def test_mistakes():
    x, weights, bias = drawn(np.random.default_rng(0), (1, 9, 9), (3, 5), 3)
    x, weights = jnp.asarray(x), pack_stem(weights, bias, 2)
    with pytest.raises(UserError, match="unknown level 'sse'"):
        compact_stem(x, weights, 5, 2, True, "sse")
    with pytest.raises(UserError, match="x: expected float32, found bfloat16"):
        compact_stem(x.astype(jnp.bfloat16), weights, 5, 2, True)
    wrong = {
        "weights": (x[..., :2], weights, 5, 2, True),
        "stride": (x, weights, 5, 32, True),
        "bias": (x, weights._replace(bias=weights.bias[:-1]), 5, 2, True),
        r"x: expected \(N, H, W, C\)": (x[0], weights, 5, 2, True),
    }
    for message, arguments in wrong.items():
        with pytest.raises(jax.errors.JaxRuntimeError, match=f"adafuse_jax: {message}"):
            jax.block_until_ready(compact_stem(*arguments))
