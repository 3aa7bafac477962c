"""A policy network by native code decides as the network does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.test_block import levels

from adafuse_jax.errors import UserError
from adafuse_jax.kernels.policy import compact_policy, pack_policy
from adafuse_jax.ops import actions as act
from adafuse_jax.ops import policy
from adafuse_jax.ops.shift import previous_frame

pytestmark = pytest.mark.usefixtures("native")


def network(random, inputs, hidden, outputs):
    """Weights and running moments."""

    def draw(*shape):
        return jnp.asarray(random.standard_normal(shape, np.float32))

    mlp = policy.MLP(
        draw(inputs, hidden), draw(hidden), draw(hidden), draw(hidden), draw(hidden, outputs), draw(outputs)
    )
    return mlp, (draw(hidden), jnp.abs(draw(hidden)) + 0.1)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_the_likeliest_actions(data):
    def size(most):
        return data.draw(st.integers(1, most))

    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    batch, frames, height, width, features = size(2), size(4), size(15), size(15), size(100)
    groups, group_size = size(60), size(3)
    actions = data.draw(st.sampled_from([act.ALL, ("skip", "keep"), ("reuse", "keep"), ("keep",)]))
    inputs, outputs = policy.mlp_sizes(features, groups * group_size, actions, group_size)
    mlp, running = network(random, inputs, size(100), outputs)
    x = jnp.asarray(random.standard_normal((batch, frames, height, width, features), np.float32))
    v, found = compact_policy(
        x,
        jnp.zeros((batch, features)),
        pack_policy(mlp, running),
        groups * group_size,
        actions,
        data.draw(st.sampled_from(levels())),
    )
    averages = policy.pool(x, 2)
    np.testing.assert_allclose(v, averages, rtol=0, atol=1e-5)
    seen = policy.seen(averages, previous_frame(averages), actions)
    logits = policy.logits(seen, mlp, running)[0].reshape(batch, frames, groups, len(actions))
    codes = np.asarray([act.ALL.index(action) for action in actions])
    assert found.dtype == np.int8
    by_group = np.asarray(found).reshape(batch, frames, groups, group_size)
    assert (by_group == by_group[..., :1]).all()
    chosen = np.argmax(by_group[..., :1] == codes, -1)
    assert (codes[chosen] == by_group[..., 0]).all()
    # Of two that are nearly equal either may be taken.
    of_chosen = np.take_along_axis(np.asarray(logits), chosen[..., None], -1)[..., 0]
    assert (of_chosen >= logits.max(-1) - 1e-4 * max(1, np.abs(logits).max())).all()


def test_frame_by_frame_it_is_the_same():
    """A stream's policy sees, with the averages of the frame before, exactly what the clip's sees."""
    mlp, running = network(np.random.default_rng(0), 200, 70, 90)
    weights = pack_policy(mlp, running)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, 9, 9, 100), np.float32))
    v = nothing = jnp.zeros((2, 100))
    averages, actions = compact_policy(x, nothing, weights, 30)
    for t in range(5):
        step, chosen = compact_policy(x[:, t : t + 1], v, weights, 30)
        np.testing.assert_array_equal(chosen[:, 0], actions[:, t])
        np.testing.assert_array_equal(step[:, 0], averages[:, t])
        v = step[:, 0]


def test_each_frame_may_have_a_bias_of_its_own():
    mlp, running = network(np.random.default_rng(0), 20, 30, 12)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, 4, 4, 10), np.float32))
    wanted = np.random.default_rng(2).integers(0, 3, (2, 3, 4))
    mlp = mlp._replace(bias1=jnp.asarray(1e9 * np.eye(3, dtype=np.float32)[wanted]).reshape(2, 3, 12))
    _, found = compact_policy(x, jnp.zeros((2, 10)), pack_policy(mlp, running), 4)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_decides_as_in_the_dense_model(wrong):
    mlp, running = network(np.random.default_rng(0), 20, 30, 12)
    x = np.random.default_rng(1).standard_normal((1, 3, 4, 4, 10)).astype(np.float32)
    x[0, 1, 2, 2, 5] = wrong
    v = policy.pool(jnp.asarray(x), 2)
    logits, _ = policy.logits(policy.seen(v, previous_frame(v), act.ALL), mlp, running)
    _, found = compact_policy(jnp.asarray(x), jnp.zeros((1, 10)), pack_policy(mlp, running), 4)
    dense = policy.argmax(policy.log_policy(logits, 3))
    assert not np.isfinite(logits[0, 1]).all()
    np.testing.assert_array_equal(found, jnp.argmax(dense, -1))


def test_mistakes():
    weights = pack_policy(*network(np.random.default_rng(0), 20, 30, 12))
    x, v = jnp.ones((1, 2, 3, 3, 10)), jnp.zeros((1, 10))
    with pytest.raises(UserError, match="x: expected float32, found bfloat16"):
        compact_policy(x.astype(jnp.bfloat16), v, weights, 4)
    with pytest.raises(UserError, match="unknown level 'sse'"):
        compact_policy(x, v, weights, 4, level="sse")
    with pytest.raises(jax.errors.JaxRuntimeError, match="v_before"):
        jax.block_until_ready(compact_policy(x, v[:, :9], weights, 4))
    fewer = {"kernels": weights.kernels[:-1], "norm": weights.norm[:, :-1]}
    for name, array in fewer.items():
        with pytest.raises(jax.errors.JaxRuntimeError, match="kernels: expected those of the network's"):
            jax.block_until_ready(compact_policy(x, v, weights._replace(**{name: array}), 4))
