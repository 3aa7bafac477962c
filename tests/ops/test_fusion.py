"""Eq. 3: golden cases, and the two ways of computing a clip."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_jax.errors import UserError
from adafuse_jax.ops import fusion
from adafuse_jax.ops.shift import previous_frame

SUBSETS = [("skip", "reuse", "keep"), ("reuse", "keep"), ("skip", "keep"), ("skip", "reuse"), ("keep",)]


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_golden(kind, golden_units):
    _, arrays = golden_units
    with jax.enable_x64(True):
        y, before = (arrays[f"fuse_{k}"].transpose(0, 2, 3, 1) for k in ("out", "hist"))
        gates = jax.nn.one_hot(arrays["fuse_action"], 3) if kind == "hard" else arrays["fuse_soft"]
        wanted = arrays[f"fuse_{kind}_result"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(fusion.fuse(gates, y, before), wanted, rtol=1e-12, atol=1e-12)
        # The golden history is the raw map of the frame before, in clips of 4 frames.
        clip = [a.reshape(2, 4, *a.shape[1:]) for a in (gates, y, before, wanted)]
        np.testing.assert_array_equal(previous_frame(clip[1]), clip[2])
        np.testing.assert_allclose(fusion.fuse_clip(clip[0], clip[1]), clip[3], rtol=1e-12, atol=1e-12)


def test_each_action_means_what_eq_3_says():
    y, before = jnp.full((1, 2, 2, 3), 5.0), jnp.full((1, 2, 2, 3), 7.0)
    fused = fusion.fuse(jnp.eye(3)[None], y, before)  # channel 0 skips, 1 reuses, 2 keeps
    np.testing.assert_array_equal(fused[0, 0, 0], [0, 7, 5])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def fused_and_gradients(form, actions, detach, policy, y, weights):
    def loss(policy, y):
        fused = form(policy, y, actions, detach)
        return (fused * weights).sum(), fused

    return jax.grad(loss, (0, 1), has_aux=True)(policy, y)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from(SUBSETS), st.booleans())
def test_shift_equals_scan_bit_for_bit(seed, actions, detach):
    # Gradients are sums over space: small integers keep them exact in any order.
    random = np.random.default_rng(seed)
    policy = np.eye(len(actions), dtype=np.float32)[random.integers(0, len(actions), (2, 4, 6))]
    y, weights = (random.integers(-8, 9, (2, 4, 3, 2, 6)).astype(np.float32) for _ in range(2))
    both = [
        fused_and_gradients(form, actions, detach, policy, y, weights)
        for form in (fusion.fuse_clip, fusion.fuse_scan)
    ]
    chex.assert_trees_all_equal(*both)


@pytest.mark.parametrize("form", [fusion.fuse_clip, fusion.fuse_scan])
def test_any_number_of_spatial_axes(form):
    random = np.random.default_rng(0)
    policy = np.eye(3, dtype=np.float32)[random.integers(0, 3, (2, 4, 6))]
    y = random.standard_normal((2, 4, 6)).astype(np.float32)
    np.testing.assert_array_equal(
        form(policy, np.broadcast_to(y[:, :, None, None], (2, 4, 3, 2, 6)))[:, :, 1, 1], form(policy, y)
    )


def test_detached_history_passes_no_gradient_to_the_frame_before():
    policy = jnp.broadcast_to(jnp.asarray([0.0, 1.0, 0.0]), (1, 3, 2, 3))  # reuse everywhere
    y = jnp.ones((1, 3, 2))
    for detach, wanted in ((False, [1, 1, 0]), (True, [0, 0, 0])):  # the last frame is never reused
        gradient = jax.grad(lambda y, d=detach: fusion.fuse_clip(policy, y, detach_history=d).sum())(y)
        np.testing.assert_array_equal(gradient[0, :, 0], wanted)


def test_keeps_the_type_of_the_map():
    policy = jnp.ones((1, 2, 4, 3))
    assert fusion.fuse_clip(policy, jnp.ones((1, 2, 4), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(2, 4, 3, 3, 1), (2, 3, 3, 3, 6), (8, 3, 3, 6)])
def test_map_of_another_shape_than_the_policy(shape):
    with pytest.raises(UserError, match="policy: expected one decision for each frame and channel"):
        fusion.fuse_clip(jnp.ones((2, 4, 6, 3)), jnp.ones(shape))
