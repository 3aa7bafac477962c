"""The paper's baselines without a policy network: LSTM, Random, Threshold and CGNet."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import filled, quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_jax import create_model, flops
from adafuse_jax.errors import UserError
from adafuse_jax.models.gated_conv import GatedConv
from adafuse_jax.models.sites import MagnitudeThreshold, RandomPolicy
from adafuse_jax.ops import gating, lstm
from adafuse_jax.train import losses
from adafuse_jax.weights import from_torch
from adafuse_jax.weights import to_torch as state_dict


@functools.cache
def tiny(name, **options):
    return filled(lambda: create_model(name, num_classes=4, **options))


def clip(seed=0, frames=3):
    return np.random.default_rng(seed).standard_normal((2, frames, 16, 16, 3)).astype(np.float32)


def maps(seed=0, channels=16, clips=2, frames=3):
    return np.random.default_rng(seed).standard_normal((clips, frames, 3, 4, channels)).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# LSTM


def test_lstm_is_its_equations():
    rng = np.random.default_rng(0)
    x, hidden = rng.standard_normal((2, 5, 3)), 4
    w = lstm.Weights(*(rng.standard_normal(s) for s in ((3, 16), (4, 16), (16,), (16,))))
    h = c = np.zeros((2, hidden))
    wanted = []
    for t in range(5):
        gates = x[:, t] @ w.kernel_x + w.bias_x + h @ w.kernel_h + w.bias_h
        i, f, g, o = (gates[:, n * hidden : (n + 1) * hidden] for n in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        wanted.append(h)
    found = lstm.scan(jnp.asarray(x, jnp.float32), jax.tree.map(jnp.float32, w))
    np.testing.assert_allclose(found, np.stack(wanted, 1), rtol=1e-4, atol=1e-5)


def test_an_lstm_classifies_the_state_of_every_frame():
    model, x = tiny("lstm_tiny", lstm_hidden=6), clip()
    out = quick_jit(model.__call__)(x)
    features, _ = quick_jit(lambda c: tiny("lstm_tiny", lstm_hidden=6).backbone(c))(x)
    np.testing.assert_allclose(out.frame_logits, model.fc(model.rnn(features)), rtol=1e-4, atol=1e-3)
    later = quick_jit(model.__call__)(x[:, ::-1])
    assert (np.abs(out.logits - later.logits) > 1e-3).all()  # order matters


# Random


def test_random_draws_with_its_shares_anew_for_each_channel_frame_and_clip():
    shares = (0.5, 0.2, 0.3)
    decider, y = RandomPolicy(shares, seed=0), maps(channels=400, clips=20, frames=5)
    fused, policy = decider(None, y, jax.random.key(3))
    np.testing.assert_array_equal(policy.sum(-1), 1)
    drawn = np.asarray(policy.argmax(-1))
    # 40,000 draws: 5 standard deviations are 0.0125. Neighbours along each axis agree by chance alone.
    assert np.abs(np.asarray(policy).mean((0, 1, 2)) - shares).max() < 0.0125
    agree = sum(s * s for s in shares)
    for axis in range(3):
        same = np.take(drawn, range(1, drawn.shape[axis]), axis) == np.take(
            drawn, range(drawn.shape[axis] - 1), axis
        )
        assert abs(same.mean() - agree) < 0.015
    before = np.concatenate([np.zeros_like(y[:, :1]), y[:, :-1]], 1)
    wanted = np.where((drawn == 2)[:, :, None, None], y, np.where((drawn == 1)[:, :, None, None], before, 0))
    np.testing.assert_array_equal(fused, wanted)


def test_random_without_a_key_repeats_itself_and_each_site_draws_for_itself():
    model = tiny("random_tiny")
    first, again, other = (
        model(clip(seed), key).policies for seed, key in ((0, None), (1, None), (0, jax.random.key(0)))
    )
    for site in first:
        np.testing.assert_array_equal(first[site], again[site])
        assert (first[site] != other[site]).any()
    sites = [np.asarray(p[:, :, :16]) for p in first.values()]
    assert (sites[0] != sites[1]).any() and (sites[1] != sites[2]).any()


@pytest.mark.parametrize("gmacs", [9.5, 10.4, 14.0])
def test_random_costs_what_was_asked_for(gmacs):
    model = nnx.eval_shape(lambda: create_model("random_r18", target_gmacs=gmacs))
    policies = {}
    for seed, (name, block) in enumerate(model.backbone.named_blocks()):
        y = jnp.zeros((40, 8, 1, 1, block.width))
        policies[name] = block.fusion(None, y, jax.random.key(seed))[1]
    cost = flops.count(model, policies)
    assert float(cost.actual.mean()) / 1e9 == pytest.approx(gmacs, rel=2e-3)


# Threshold


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), channels=st.integers(2, 20), share=st.floats(0.1, 1.0))
def test_threshold_keeps_the_largest(seed, channels, share):
    y = maps(seed, channels)
    fused, policy = MagnitudeThreshold(share)(None, y)
    size = np.abs(y).mean((2, 3))
    kept = np.asarray(policy[..., 1]) == 1
    np.testing.assert_array_equal(kept.sum(-1), int(share * channels))
    for place in np.ndindex(size.shape[:2]):
        if kept[place].any() and not kept[place].all():
            assert size[place][kept[place]].min() > size[place][~kept[place]].max()
    np.testing.assert_array_equal(fused, np.where(kept[:, :, None, None], y, 0))


# CGNet


def gated(threshold):
    """A GatedConv of 8 inputs in 4 partitions with all thresholds at one value."""

    def create():
        conv = nnx.Conv(8, 6, (3, 3), padding=1, use_bias=False, rngs=nnx.Rngs(0))
        return GatedConv(conv, 4)

    made = filled(create)
    made.threshold[...] = jnp.full(6, threshold, jnp.float32)
    return made


def test_a_gate_mixes_the_whole_convolution_and_that_of_the_first_inputs():
    made, x = gated(0.3), maps(channels=8)
    out, shares = made(x, train=False)
    frames = jnp.asarray(x.reshape(-1, *x.shape[2:]))
    full, partial = made.conv(frames), made.conv(frames.at[..., 2:].set(0))
    mean, var = made.bn.running
    is_open = (partial - mean) / np.sqrt(var + 1e-5) > 0.3
    assert 0.05 < is_open.mean() < 0.95
    np.testing.assert_allclose(
        out.reshape(full.shape), np.where(is_open, full, partial), rtol=1e-4, atol=1e-4
    )
    wanted = is_open.mean((1, 2)).reshape(2, 3, 6)
    np.testing.assert_allclose(shares, np.stack([1 - wanted, wanted], -1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("threshold", "closed"), [(-1e9, False), (1e9, True)])
def test_cgnet_at_its_two_ends(threshold, closed):
    """All gates open: the plain net. All closed: the net whose conv1 see a quarter of their inputs."""
    given = state_dict(tiny("tsn_tiny"))
    for site in ("layer1.0", "layer2.0", "layer3.0"):
        prefix = f"base_model.{site}.conv1."
        outputs, inputs = given[prefix + "weight"].shape[:2]
        given[prefix + "threshold"] = np.full((1, outputs, 1, 1), threshold, np.float32)
        given[prefix + "bn.running_mean"] = np.zeros(outputs, np.float32)
        given[prefix + "bn.running_var"] = np.ones(outputs, np.float32)
        given[prefix + "bn.num_batches_tracked"] = np.zeros((), np.int64)
        given[prefix + "mask"] = np.zeros((outputs, inputs, 3, 3), np.float32)
    model = from_torch(create_model("cgnet_tiny", num_classes=4), given)
    plain = create_model("tsn_tiny", num_classes=4)
    if closed:
        for key in [k for k in given if k.endswith(".0.conv1.weight")]:
            given[key] = given[key].copy()
            given[key][:, given[key].shape[1] // 4 :] = 0
    from_torch(plain, {k: v for k, v in given.items() if k in state_dict(plain)})
    x = clip()
    out, wanted = quick_jit(model.__call__)(x), quick_jit(plain.__call__)(x)
    np.testing.assert_allclose(out.logits, wanted.logits, rtol=1e-4, atol=1e-3)
    frame = plain.count((16, 16))
    conv1 = sum(
        block.count((side, side))[1].after
        for block, side in zip((b for _, b in model.backbone.named_blocks()), (8, 8, 4), strict=True)
    )
    cost = flops.count(model, out.policies, image_size=16)
    assert cost.dense == 3 * frame.dense
    np.testing.assert_allclose(cost.actual, cost.dense - closed * 3 * conv1, rtol=1e-6)
    assert conv1 == sum(
        3 * 9 * i * o * side * side // 4 for i, o, side in ((16, 16, 8), (16, 32, 4), (32, 64, 2))
    )


def test_the_gradient_of_a_gate_is_that_of_the_sigmoid():
    partial, threshold = jnp.linspace(-2, 2, 9), jnp.full(9, 0.25)
    value, gradient = jax.vmap(jax.value_and_grad(gating.gate, (0, 1)))(partial, threshold)
    np.testing.assert_array_equal(value, partial > 0.25)
    s = sigmoid(2 * (np.asarray(partial) - 0.25))
    np.testing.assert_allclose(gradient[0], 2 * s * (1 - s), rtol=1e-5)
    np.testing.assert_allclose(gradient[1], -2 * s * (1 - s), rtol=1e-5)


def test_threshold_loss():
    model = create_model("cgnet_tiny", num_classes=4)  # thresholds start at 0
    assert losses.thresholds(model, 1.0, 1e-4) == pytest.approx(1e-4 * (16 + 32 + 64))
    assert losses.thresholds(model, 0.0, 1e-4) == 0
    assert losses.thresholds(tiny("tsn_tiny"), 1.0, 1e-4) == 0


def test_published_dense_cost_of_cgnet():
    """The published code doesn't count CGNet: it takes 1.8188 and 4.28 GMACs a frame for its two nets."""
    for name, gmacs in (("cgnet_r18", 1.8188), ("cgnet_r50", 4.28)):
        model = nnx.eval_shape(lambda name=name: create_model(name))
        policies = {
            site: jnp.tile(jnp.array([0.0, 1.0]), (1, 8, block.width, 1))
            for site, block in model.backbone.named_blocks()
        }
        cost = flops.count(model, policies, published=True)
        assert cost.dense / 8e9 == pytest.approx(gmacs, rel=1e-9)
        assert flops.count(model, policies).dense == 8 * model.count((224, 224)).dense


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lstm_tiny", {"lstm_hidden": 0}, "lstm_hidden: expected more than 0, found 0"),
        ("random_tiny", {"shares": (0.5, 0.6, 0.1)}, "shares: expected one per action"),
        ("random_tiny", {"target_gmacs": 1e-6}, "target_gmacs: expected "),
        (
            "random_tiny",
            {"target_gmacs": 1, "shares": (0, 0, 1)},
            "target_gmacs: expected either it or shares",
        ),
        ("threshold_tiny", {"keep_share": 0}, "keep_share: expected more than 0 and at most 1, found 0"),
        ("cgnet_tiny", {"partitions": 3}, "partitions: expected 2 or more, a divisor of 16 inputs, found 3"),
        ("cgnet_tiny", {"tau": 1.0}, "unknown option of 'cgnet_tiny' 'tau'"),
    ],
)
def test_what_cannot_be_made(name, options, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        create_model(name, **options)
    assert "\n" not in str(error.value)
