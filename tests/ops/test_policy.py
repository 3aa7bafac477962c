"""The policy network and its sampling: golden cases in float64, and what holds for any weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_jax.errors import UserError
from adafuse_jax.ops import norm, policy
from adafuse_jax.ops.shift import previous_frame

ACTIONS = {
    "policy_hist3": ("skip", "reuse", "keep"),
    "policy_noskip": ("reuse", "keep"),
    "policy_nohist": ("skip", "keep"),
}
PARAMETERS = {  # ours: published, in the order of `policy.MLP`
    "kernel0": "gate_fc0.weight",
    "bias0": "gate_fc0.bias",
    "scale": "gate_bn.weight",
    "shift": "gate_bn.bias",
    "kernel1": "gate_fc1.weight",
    "bias1": "gate_fc1.bias",
}


class Case:
    """A golden policy block, all in float64 and our layout."""

    def __init__(self, name, golden, golden_units):
        meta, arrays = golden_units
        self.actions, self.tau = ACTIONS[name], meta[name]["tau"]
        self.frames, shapes = meta[name]["T"], meta[name]["shapes"]
        self.golden = {k.removeprefix(name + "_"): arrays[k] for k in arrays if k.startswith(name)}

        def weight(key):
            return golden.gen(f"policy.{key}", tuple(shapes[key])).astype(np.float64)

        self.running = tuple(weight(f"gate_bn.running_{k}") for k in ("mean", "var"))
        self.mlp = policy.MLP(*(weight(key).T for key in PARAMETERS.values()))
        self.x = self.clip("x").transpose(0, 1, 3, 4, 2)

    def clip(self, key):
        """A golden array of (B*T, ...) as (B, T, ...)."""
        array = self.golden[key]
        return array.reshape(-1, self.frames, *array.shape[1:])

    def log_policy(self, x, mlp, running):
        """Log-probabilities and moments used, as the layer puts them together."""
        v = policy.pool(x, 2)
        logits, used = policy.logits(policy.seen(v, previous_frame(v), self.actions), mlp, running)
        return policy.log_policy(logits, len(self.actions)), used


@pytest.fixture(params=ACTIONS)
def case(request, golden, golden_units):
    with jax.enable_x64(True):
        yield Case(request.param, golden, golden_units)


def test_golden_eval(case):
    log_probs, _ = case.log_policy(case.x, case.mlp, case.running)
    assert log_probs.dtype == np.float64
    np.testing.assert_allclose(log_probs, case.clip("eval_logsoftmax"), rtol=0, atol=1e-9)
    chosen = policy.decide_clip(log_probs, None, case.tau)
    np.testing.assert_array_equal(jnp.argmax(chosen, -1), case.clip("eval_action"))


def test_golden_sampling_and_gradients(case):
    gumbel, w = case.clip("gumbel"), case.clip("w")

    def loss(x, mlp):
        log_probs, used = case.log_policy(x, mlp, None)
        hard = policy.straight_through(log_probs, gumbel, case.tau)
        return (hard * w).sum(), (log_probs, hard, used)

    grad = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    (grad_x, grad_mlp), (log_probs, hard, used) = grad(case.x, case.mlp)
    soft = jax.nn.softmax((log_probs + gumbel) / case.tau)
    np.testing.assert_allclose(soft, case.clip("soft"), rtol=0, atol=1e-9)
    np.testing.assert_array_equal(hard, jax.nn.one_hot(case.clip("hard_action"), len(case.actions)))
    np.testing.assert_allclose(grad_x, case.clip("grad_x").transpose(0, 1, 3, 4, 2), rtol=1e-8, atol=1e-12)
    for ours, published in PARAMETERS.items():
        wanted = case.golden[f"grad_{published}"]
        # fc0's bias has no effect before a batch's own normalisation: its gradient is 0 but for rounding.
        tolerance = 1e-8 * np.abs(wanted).max() + 1e-12
        np.testing.assert_allclose(getattr(grad_mlp, ours).T, wanted, rtol=0, atol=tolerance, err_msg=ours)
    count = case.x.shape[0] * case.x.shape[1]
    for kind, after in zip(("mean", "var"), norm.update(case.running, used, count), strict=True):
        np.testing.assert_allclose(after, case.golden[f"after_gate_bn.running_{kind}"], rtol=1e-10)


def arrays(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([0.1, 3.0, 100.0]), st.sampled_from([0.2, 1.0]))
def test_straight_through_is_one_hot_forward_and_soft_backward(seed, scale, tau):
    logits, weights = scale * arrays(seed, 2, 24), arrays(seed + 1, 2, 8, 3)
    noise = np.random.default_rng(seed + 2).gumbel(size=(2, 8, 3)).astype(np.float32)
    (hard, hard_gradient), (soft, soft_gradient) = hard_and_soft(logits, noise, tau, weights)
    assert set(np.unique(hard)) <= {0.0, 1.0}
    np.testing.assert_array_equal(hard.sum(-1), 1)
    np.testing.assert_array_equal(hard.argmax(-1), soft.argmax(-1))
    np.testing.assert_allclose(hard_gradient, soft_gradient, rtol=1e-5, atol=1e-6)


@jax.jit
def hard_and_soft(logits, noise, tau, weights):
    def hard(logits):
        chosen = policy.straight_through(policy.log_policy(logits, 3), noise, tau)
        return (chosen * weights).sum(), chosen

    def soft(logits):
        chosen = jax.nn.softmax((policy.log_policy(logits, 3) + noise) / tau)
        return (chosen * weights).sum(), chosen

    return [(f(logits)[1], jax.grad(f, has_aux=True)(logits)[0]) for f in (hard, soft)]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=6, max_size=6), st.sampled_from([2, 3]))
def test_log_policy_is_clamped_and_normalised(logits, num_actions):
    logits = np.asarray(logits, np.float32)
    log_probs = np.asarray(jax.jit(policy.log_policy, static_argnums=1)(logits, num_actions))
    assert log_probs.shape == (6 // num_actions, num_actions)
    assert (log_probs >= np.log(np.float32(1e-8))).all()
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=1e-5)
    # The action is the fastest axis: channel 0 owns the first logits.
    assert log_probs[0, logits[:num_actions].argmax()] == log_probs[0].max()


def test_sampled_actions_follow_their_probabilities():
    log_probs = np.log(np.asarray([0.6, 0.3, 0.1], np.float32))
    chosen = policy.decide(np.broadcast_to(log_probs, (1, 20000, 3)), jax.random.key(0), 0.67)
    # Six standard deviations of a share of 20000 draws.
    np.testing.assert_allclose(np.mean(chosen, (0, 1)), np.exp(log_probs), atol=0.021)


def test_a_frame_draws_the_same_alone_and_in_any_clip():
    log_probs, key = np.zeros((2, 5, 8, 3), np.float32), jax.random.key(3)
    decide, decide_clip = jax.jit(policy.decide), jax.jit(policy.decide_clip)
    clip = np.asarray(decide_clip(log_probs, key, 0.67))
    np.testing.assert_array_equal(decide_clip(log_probs[:, :2], key, 0.67), clip[:, :2])
    for t in range(5):
        frame = decide(log_probs[:, t], jax.random.fold_in(key, t), 0.67)
        np.testing.assert_array_equal(frame, clip[:, t])
    assert all((clip[:, t] != clip[:, t - 1]).any() for t in range(5))


def test_no_gradient_without_a_key():
    gradient = jax.grad(lambda z: policy.decide(policy.log_policy(z, 3), None, 0.67).sum())(arrays(0, 2, 24))
    np.testing.assert_array_equal(gradient, 0)


def test_spread_repeats_a_decision_over_neighbours():
    groups = arrays(0, 2, 4, 3)
    channels = np.asarray(policy.spread(groups, 5))
    assert channels.shape == (2, 20, 3)
    for channel in range(20):
        np.testing.assert_array_equal(channels[:, channel], groups[:, channel // 5])


def test_what_the_network_sees_has_the_frame_before_first():
    v = arrays(0, 2, 3, 4)
    seen = np.asarray(policy.seen(v, previous_frame(v), ("reuse", "keep")))
    np.testing.assert_array_equal(seen[:, 0, :4], 0)
    np.testing.assert_array_equal(seen[:, 1:, :4], v[:, :-1])
    np.testing.assert_array_equal(seen[..., 4:], v)
    np.testing.assert_array_equal(policy.seen(v, previous_frame(v), ("skip", "keep")), v)


def test_prior_deals_the_actions_out_by_their_shares():
    bias = policy.prior_bias(36, ("skip", "reuse", "keep"), (0.0, 1 / 3, 2 / 3), 3.0).reshape(12, 3)
    np.testing.assert_array_equal(bias.sum(0), [0, 12, 24])
    np.testing.assert_array_equal(bias.max(-1), 3)
    assert not policy.prior_bias(36, ("skip", "reuse", "keep"), None, 3.0).any()


@pytest.mark.parametrize("prior", [(1.0,), (0.5, 0.6), (-0.5, 1.5)])
def test_prior_that_is_no_distribution(prior):
    with pytest.raises(UserError, match="prior: expected one share per action"):
        policy.prior_bias(8, ("reuse", "keep"), prior, 3.0)


@pytest.mark.parametrize("group_size", [0, -1, 5, 24])
def test_group_size_that_does_not_divide(group_size):
    with pytest.raises(UserError, match=f"group_size: expected a divisor of the 12 .* {group_size}"):
        policy.mlp_sizes(4, 12, ("reuse", "keep"), group_size)
