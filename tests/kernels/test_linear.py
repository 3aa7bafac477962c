"""A product by native code is the product."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.test_block import levels

from adafuse_jax.errors import UserError
from adafuse_jax.kernels.linear import linear, pack_linear

pytestmark = pytest.mark.usefixtures("native")


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_product(data):
    rows, inputs, outputs = (data.draw(st.integers(1, most)) for most in (20, 300, 200))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    x, kernel = (random.standard_normal(shape, np.float32) for shape in ((rows, inputs), (inputs, outputs)))
    level = data.draw(st.sampled_from(levels()))
    found = linear(jnp.asarray(x), pack_linear(kernel), outputs, level)
    wanted = x.astype(np.float64) @ kernel
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * max(1, np.abs(wanted).max()))


def test_a_row_does_not_depend_on_the_others():
    """So a stream's policy sees, frame by frame, what the clip's sees."""
    random = np.random.default_rng(0)
    x, kernel = (random.standard_normal(shape, np.float32) for shape in ((2, 8, 100), (100, 70)))
    x, packed = jnp.asarray(x), pack_linear(kernel)
    whole = linear(x, packed, 70)
    assert whole.shape == (2, 8, 70)
    for t in range(8):
        np.testing.assert_array_equal(linear(x[:, t], packed, 70), whole[:, t])


def test_mistakes():
    with pytest.raises(UserError, match="x: expected float32, found bfloat16"):
        linear(jnp.ones((1, 2), jnp.bfloat16), pack_linear(np.ones((2, 3))), 3)
