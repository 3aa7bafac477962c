"""Eqs. 4 and 5: golden cases, a plain loop over channels, and what holds for any policy."""

import jax
import numpy as np
import pytest
from helpers import inception_sites
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_jax.ops import costs

ACTIONS = {"hist3": ("skip", "reuse", "keep"), "noskip": ("reuse", "keep"), "nohist": ("skip", "keep")}


def gmacs(base, policies, sites, actions, published):
    """(real, upper) in GMACs per frame of a net of `base`, as `flops.count` puts them together."""

    @jax.jit
    def savings(policies):
        pairs = [costs.savings(p, s, actions, published) for p, s in zip(policies, sites, strict=True)]
        return [sum(part).mean() / 1e9 for part in zip(*pairs, strict=True)]

    with jax.enable_x64(True):
        before, after = map(float, savings(policies))
    return base - before - after, base - after


@pytest.mark.parametrize("frames", [2, 4, 8])
@pytest.mark.parametrize("kind", ACTIONS)
def test_golden(kind, frames, golden_units):
    meta, arrays = golden_units
    name, actions = f"flops_{kind}_T{frames}", ACTIONS[kind]
    wanted = meta[name]
    chosen = [arrays[f"{name}_action{i}"] for i in range(len(wanted["per_block"]))]
    policies = [np.eye(len(actions))[c] for c in chosen]
    sites = [
        costs.SiteCost(((c.shape[-1], convs[0]),), convs[1])
        for c, convs in zip(chosen, wanted["per_block"], strict=True)
    ]
    for suffix, published in (("", True), ("_fixed", False)):
        real, upper = gmacs(wanted["base"], policies, sites, actions, published)
        assert real == pytest.approx(wanted["real" + suffix], rel=1e-9)
        assert upper == pytest.approx(wanted["upb" + suffix], rel=1e-9)


def test_golden_branches(golden_units):
    meta, arrays = golden_units
    wanted = meta["incflops_hist3"]
    sites = inception_sites(wanted["per_block"], wanted["meta"])
    policies = [np.eye(3)[arrays[f"incflops_action{i}"]] for i in range(len(sites))]
    for suffix, published in (("", True), ("_fixed", False)):
        real, upper = gmacs(wanted["base"], policies, sites, ACTIONS["hist3"], published)
        assert real == pytest.approx(wanted["real" + suffix], rel=1e-9)
        assert upper == pytest.approx(wanted["upb" + suffix], rel=1e-9)


def loop(actions, chosen, channels_before, cost_after):
    """Eq. 5 for one clip, channel by channel: MACs of both convolutions, and with the first always whole."""
    frames, channels = chosen.shape
    before, after = 0.0, 0.0
    for t in range(frames):
        for i in range(channels):
            kept = actions[chosen[t, i]] == "keep"
            reused_later = t + 1 < frames and actions[chosen[t + 1, i]] == "reuse"
            before += (kept or reused_later) * channels_before[i]
            after += (actions[chosen[t, i]] != "skip") * cost_after / channels
    return before + after, frames * sum(channels_before) + after


SITE = costs.SiteCost(((4, 400), (6, 1200)), 900)  # two convolutions: 100 and 200 MACs a channel
EACH = [100] * 4 + [200] * 6
DENSE = 400 + 1200 + 900
SUBSETS = [*ACTIONS.values(), ("skip", "reuse"), ("reuse",), ("keep",)]
savings = jax.jit(costs.savings, static_argnums=(1, 2, 3))


def left(chosen, actions):
    """(actual, upper) MACs per frame of a clip at SITE."""
    policy = np.eye(len(actions), dtype=np.float32)[chosen][None]
    before, after = savings(policy, SITE, actions, False)
    return DENSE - float(before[0]) - float(after[0]), DENSE - float(after[0])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from(SUBSETS), st.sampled_from([1, 5]))
def test_eq_5_channel_by_channel(seed, actions, frames):
    chosen = np.random.default_rng(seed).integers(0, len(actions), (frames, 10))
    actual, upper = left(chosen, actions)
    wanted = [macs / frames for macs in loop(actions, chosen, EACH, 900)]
    assert (actual, upper) == pytest.approx(wanted, rel=1e-5)
    assert actual <= upper <= DENSE


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(0, 4), st.integers(0, 9))
def test_skipping_a_kept_channel_never_costs_more(seed, t, i):
    chosen = np.random.default_rng(seed).integers(0, 3, (5, 10))
    chosen[t, i] = 2
    kept = left(chosen, ACTIONS["hist3"])
    chosen[t, i] = 0
    skipped = left(chosen, ACTIONS["hist3"])
    assert skipped[0] < kept[0]  # strictly: the second convolution saves the channel at least
    assert skipped[1] < kept[1]


@pytest.mark.parametrize("actions", ACTIONS.values())
def test_keeping_all_saves_nothing(actions):
    assert left(np.full((5, 10), len(actions) - 1), actions) == (DENSE, DENSE)


def test_skipping_all_saves_all():
    actual, upper = left(np.zeros((5, 10), int), ACTIONS["hist3"])
    assert (actual, upper) == (pytest.approx(0, abs=1e-3), pytest.approx(DENSE - 900))


def test_gradient_says_what_each_decision_saves():
    """At keep everywhere: skipping channel i at t saves its part of both convolutions."""
    policy = np.broadcast_to(np.asarray([0.0, 0.0, 1.0], np.float32), (1, 5, 10, 3))
    gradient = jax.jit(jax.grad(lambda p: sum(costs.savings(p, SITE)).sum()))(policy)
    for i in range(10):
        np.testing.assert_allclose(gradient[0, :, i, 0] - gradient[0, :, i, 2], (EACH[i] + 90) / 5, rtol=1e-5)


def test_macs_of_layers():
    """Small ones, counted by hand."""
    assert costs.conv_macs(3, 2, 3, (4, 5)) == 2 * 4 * 5 * 27
    assert costs.conv_macs(3, 2, 3, (4, 5), bias=True) == 2 * 4 * 5 * 28
    assert costs.norm_macs(7) == 14
    assert costs.norm_macs(7, (2, 3)) == 84
    assert costs.linear_macs(3, 5) == 30
    assert costs.pool_macs(3, (7, 7)) == 3 * 49 + 3
    assert [costs.conv_out(224, 7, 2, 3), costs.conv_out(112, 3, 2, 1), costs.conv_out(7, 3, 1, 1)] == [
        112,
        56,
        7,
    ]
