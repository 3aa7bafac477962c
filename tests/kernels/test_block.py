"""One native call gives what a block's parts give, of any shape, on any kind of CPU."""

import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_jax.errors import UserError
from adafuse_jax.kernels import block
from adafuse_jax.kernels.block import before_first, codes, compact_block, compact_step, pack_block
from adafuse_jax.kernels.build import LEVELS
from adafuse_jax.ops import actions as act

SKIP, REUSE, KEEP = range(3)


pytestmark = pytest.mark.usefixtures("native")


@functools.cache
def levels():
    """Those that this CPU has."""
    x, actions = jnp.ones((1, 1, 1, 1, 1)), jnp.full((1, 1, 1), KEEP, jnp.int8)
    weights = pack_block((np.ones((1, 1, 1, 1)), np.zeros(1)), (np.ones((1, 1, 1, 1)), np.zeros(1)))
    found = []
    for level in LEVELS:
        try:
            jax.block_until_ready(compact_block(x, weights, actions, level=level))
            found.append(level)
        except jax.errors.JaxRuntimeError as error:
            assert "level: expected instructions that this CPU has" in str(error)
    return found


def convolved(x, kernel, bias, stride):
    """In float64, as the sum over the taps that it is."""
    k = len(kernel)
    size = [(s + 2 * (k // 2) - k) // stride + 1 for s in x.shape[2:4]]
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (k // 2,) * 2, (k // 2,) * 2, (0, 0)))
    ends = [(s - 1) * stride + 1 for s in size]
    taps = ((i, j) for i in range(k) for j in range(k))
    return bias + sum(
        x[:, :, i : i + ends[0] : stride, j : j + ends[1] : stride] @ kernel[i, j] for i, j in taps
    )


def expected(x, actions, arrays, strides):
    """Eq. 3 between two convolutions."""
    y = np.maximum(convolved(x, *arrays[:2], strides[0]), 0)
    before = np.concatenate([np.zeros_like(y[:, :1]), y[:, :-1]], 1)
    chosen = actions[:, :, None, None]
    fused = np.where(chosen == KEEP, y, np.where(chosen == REUSE, before, 0))
    return convolved(fused, *arrays[2:], strides[1])


def both(arrays):
    return pack_block(arrays[:2], arrays[2:])


def drawn(random, sizes, channels, kernels, shares=(1 / 3, 1 / 3, 1 / 3)):
    """x, actions and (kernel1, bias1, kernel2, bias2)."""
    i, c, o = channels
    k1, k2 = kernels
    shapes = ((*sizes, i), (k1, k1, i, c), (c,), (k2, k2, c, o), (o,))
    x, *arrays = (random.standard_normal(shape).astype(np.float32) for shape in shapes)
    return x, random.choice(3, (*sizes[:2], c), p=shares).astype(np.int8), arrays


def assert_same(found, wanted):
    assert found.shape == wanted.shape and found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_a_block_is_its_parts(data):
    draw = data.draw
    names = ("B", "T", "H", "W", "in", "C", "middle", "out")
    most = (3, 3, 9, 9, 40, 150, 90, 90)
    *sizes, i, c, m, o = (draw(st.integers(1, n), label=s) for n, s in zip(most, names, strict=True))
    level = draw(st.sampled_from(levels()), label="level")
    third, how = draw(st.booleans(), label="conv3"), draw(st.sampled_from(["none", "itself", "conv"]))
    o, kernels = o if third else m, draw(st.tuples(*[st.sampled_from([1, 3, 5])] * 2), label="kernels")
    strides = draw(st.tuples(*[st.integers(1, 3)] * 2), label="strides")
    random = np.random.default_rng(draw(st.integers(0, 99)))
    x, actions, arrays = drawn(random, sizes, (i, c, m), kernels)
    group = draw(st.sampled_from([1, 16]), label="group")  # of 16: there are whole vectors that aren't read
    actions = np.repeat(actions[..., ::group], group, -1)[..., :c]
    wanted = expected(x, actions, arrays, strides)
    normal = functools.partial(random.standard_normal, dtype=np.float32)
    conv3 = (normal((1, 1, m, o)), normal(o)) if third else None
    project = (normal((1, 1, i, o)), normal(o)) if how == "conv" else None
    if third:
        wanted = convolved(np.maximum(wanted, 0), *conv3, 1)
    shortcut = {"none": None, "itself": normal(wanted.shape), "conv": x}[how]
    if how != "none":
        added = convolved(x, *project, strides[0] * strides[1]) if project else shortcut
        wanted = np.maximum(wanted + added, 0)
        shortcut = jnp.asarray(shortcut)
    with mock.patch.object(block, "WIDE", draw(st.sampled_from([1, 1000]), label="tiles")):
        weights = pack_block(arrays[:2], arrays[2:], conv3, project, strides)
    x, actions = jnp.asarray(x), jnp.asarray(actions)
    found, averages = compact_block(x, weights, actions, shortcut, level)
    assert_same(found, wanted)
    assert_same(frame_by_frame(x, actions, weights, shortcut, level), wanted)
    if third:
        np.testing.assert_allclose(averages, wanted.mean((2, 3)), rtol=0, atol=1e-5 * np.abs(wanted).max())
    else:
        assert averages is None


def frame_by_frame(x, actions, weights, shortcut, level):
    before, outs = before_first(x[:, 0], weights), []
    for t in range(x.shape[1]):
        more = None if shortcut is None else shortcut[:, t]
        before, out, _ = compact_step(x[:, t], weights, actions[:, t], before, more, level)
        outs.append(out)
    return jnp.stack(outs, 1)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shares", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.5, 0), (0, 0.5, 0.5)])
def test_some_actions_alone(level, shares):
    if level not in levels():
        pytest.skip(f"this CPU has no {level}")
    x, actions, arrays = drawn(np.random.default_rng(0), (2, 3, 5, 7), (16, 80, 72), (3, 3), shares)
    found, _ = compact_block(jnp.asarray(x), both(arrays), jnp.asarray(actions), level=level)
    assert_same(found, expected(x, actions, arrays, (1, 1)))
    steps = frame_by_frame(jnp.asarray(x), jnp.asarray(actions), both(arrays), None, level)
    assert_same(steps, found)
    if shares[SKIP] == 1:
        np.testing.assert_array_equal(found, np.broadcast_to(arrays[-1], found.shape))


def test_more_weights_than_the_cache_takes_at_once():
    x, actions, arrays = drawn(np.random.default_rng(0), (1, 2, 7, 7), (600, 700, 16), (3, 3))
    found, _ = compact_block(jnp.asarray(x), both(arrays), jnp.asarray(actions))
    assert_same(found, expected(x, actions, arrays, (1, 1)))


def test_levels_there_must_be():
    assert levels()[:2] == ["best", "baseline"]


def test_streams_start_anew_each_for_itself():
    x, actions, arrays = drawn(np.random.default_rng(0), (2, 4, 5, 5), (6, 20, 8), (3, 3))
    weights, steps = (
        both(arrays),
        [(jnp.asarray(x[:, t]), jnp.asarray(actions[:, t])) for t in range(4)],
    )
    before = before_first(steps[0][0], weights)
    for x_t, actions_t in steps[:2]:
        before, _, _ = compact_step(x_t, weights, actions_t, before)
    before = jax.tree.map(lambda a: a.at[0].set(0), before)
    found = []
    for x_t, actions_t in steps[2:]:
        before, out, _ = compact_step(x_t, weights, actions_t, before)
        found.append(out)
    found = np.stack(found, 1)
    assert_same(jnp.asarray(found[:1]), expected(x[:1, 2:], actions[:1, 2:], arrays, (1, 1)))
    assert_same(jnp.asarray(found[1:]), expected(x[1:], actions[1:], arrays, (1, 1))[:, 2:])


def test_threads_and_devices_at_once():
    """Each call gives, bit for bit, what it gives alone."""
    random, run = np.random.default_rng(0), jax.jit(compact_block)
    cases = [drawn(random, (2, 3, 9, 9), (16, 70, 33), (3, 3)) for _ in range(8)]
    cases = [(jnp.asarray(x), both(arrays), jnp.asarray(actions)) for x, actions, arrays in cases]
    alone = [np.asarray(run(*case)[0]) for case in cases]
    devices = jax.devices()
    assert len(devices) > 1

    def call(i):
        case = cases[i % len(cases)]
        if i % 2:
            case = jax.device_put(case, devices[i % len(devices)])
        return np.asarray(run(*case)[0])

    with ThreadPoolExecutor(8) as pool:
        for i, found in enumerate(pool.map(call, range(64))):
            np.testing.assert_array_equal(found, alone[i % len(cases)])


def test_nan_stays_in_its_frame_and_in_what_is_reused():
    x, _, arrays = drawn(np.random.default_rng(0), (1, 3, 4, 4), (3, 5, 4), (3, 3))
    x[0, 1, 2, 2] = np.nan
    for action, seen in ((KEEP, [1]), (REUSE, [2]), (SKIP, [])):
        actions = jnp.full((1, 3, 5), action, jnp.int8)
        found, _ = compact_block(jnp.asarray(x), both(arrays), actions)
        assert [t for t in range(3) if np.isnan(found[0, t]).any()] == seen


def test_codes():
    policy = jax.nn.one_hot(jnp.array([[0, 1, 2]]), 3)
    np.testing.assert_array_equal(codes(policy), [[SKIP, REUSE, KEEP]])
    assert codes(policy).dtype == jnp.int8
    np.testing.assert_array_equal(codes(policy[..., 1:], ("reuse", "keep")), [[REUSE, REUSE, KEEP]])
    assert [act.ALL.index(a) for a in ("skip", "reuse", "keep")] == [SKIP, REUSE, KEEP]


def test_mistakes():
    x, actions, arrays = drawn(np.random.default_rng(0), (1, 2, 4, 4), (3, 5, 4), (3, 3))
    x, actions, weights = jnp.asarray(x), jnp.asarray(actions), both(arrays)
    with pytest.raises(UserError, match="unknown level 'sse'"):
        compact_block(x, weights, actions, level="sse")
    with pytest.raises(UserError, match="x: expected float32, found bfloat16"):
        compact_block(x.astype(jnp.bfloat16), weights, actions)
    with pytest.raises(UserError, match="shortcut: expected 4 channels, found 3"):
        compact_block(x, weights, actions, shortcut=x)
    small = jnp.ones((1, 2, 3, 4, 4))

    def other(**sizes):
        return x, dataclasses.replace(weights, **sizes), actions

    sizes = "weights: expected those of the block's sizes"
    wrong = {
        "actions: expected 0, 1 or 2": [(x, weights, actions + 1)],
        r"actions: expected \(B, T, C\)": [(x, weights, actions[:, :1])],
        sizes: [
            (x[..., :2], weights, actions),
            (x, weights, actions[..., :4]),
            other(middle=65, features=65),
            other(data=weights.data[:-1]),
            other(sides=(0, 6)),
        ],
        "features: expected those of the second": [other(features=3)],
        "shortcut: expected the output's shape": [(x, weights, actions, small)],
        "strides": [other(strides=(32, 1))],
        "sides": [other(sides=(5, 6)), other(strides=(2, 1))],
    }
    for message, calls in wrong.items():
        for arguments in calls:
            with pytest.raises(jax.errors.JaxRuntimeError, match=f"adafuse_jax: {message}"):
                jax.block_until_ready(compact_block(*arguments))
