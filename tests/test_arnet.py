"""The baseline AR-Net: choices and skips frame by frame, what they say, cost and learn."""

import functools

import chex
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
from adafuse_jax.models.mobilenet import InvertedResidual, MobileNetV2
from adafuse_jax.ops import costs, lstm, resolution
from adafuse_jax.weights import from_torch, to_torch

CLASSES, FRAMES, SIDE = 4, 5, 32
SIDES = (32, 24, 16, 12)  # of resolutions 48, 36, 24 and 18
LENGTHS = (1, 1, 1, 1, 1, 2, 4)
SKIP1, SKIP2, SKIP4 = 4, 5, 6


def clip(seed=0):
    return np.random.default_rng(seed).standard_normal((2, FRAMES, SIDE, SIDE, 3)).astype(np.float32)


def make():
    return filled(lambda: create_model("arnet_tiny", num_classes=CLASSES))


@functools.cache
def tiny():
    return make()


@functools.cache
def full(classes=174):
    """The published sizes without weights: counting needs none."""
    return nnx.eval_shape(lambda: create_model("arnet_r50", num_classes=classes))


@functools.cache
def runner():
    """(bias of the decisions, clip, key) -> output of the model whose states decide nothing."""
    model = make()
    model.decide.kernel[...] = jnp.zeros_like(model.decide.kernel[...])
    graph, state = nnx.split(model)

    @quick_jit
    def run(bias, clip, key):
        model = nnx.merge(graph, state, copy=True)
        model.decide.bias[...] = bias
        return model(clip, key)

    return lambda action, clip, key=None: run(50.0 * jnp.eye(7)[action], clip, key)


def one_hot(*actions):
    return np.eye(7, dtype=np.float32)[np.asarray(actions)]


# Resolutions


@pytest.mark.parametrize(("side", "smaller"), [(224, 168), (224, 112), (224, 84), (7, 7), (7, 3)])
def test_nearest_takes_the_pixel_to_the_left_and_above(side, smaller):
    clip = np.arange(side * side, dtype=np.float32).reshape(1, 1, side, side, 1)
    found = resolution.nearest(clip, (smaller, side))
    rows = [int(i * side / smaller) for i in range(smaller)]
    np.testing.assert_array_equal(found, clip[:, :, rows])
    np.testing.assert_array_equal(resolution.nearest(clip, (side, smaller)), clip[:, :, :, rows])


@pytest.mark.parametrize("action", range(3))
def test_a_resolution_always_chosen_is_its_backbone_alone(action):
    x, model = clip(), tiny()
    out = runner()(action, x)
    small = resolution.nearest(x, (SIDES[action],) * 2)
    features, _ = quick_jit(lambda c: model.backbones[action](c))(small)
    wanted = model.heads[action](features)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(out.frame_logits, wanted, rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(out.logits, wanted.mean(1), rtol=0, atol=1e-5 * scale)
    np.testing.assert_array_equal(out.policies["resolution"], np.tile(one_hot(action), (2, FRAMES, 1, 1)))


def test_the_smallest_resolution_is_the_policy_network_itself():
    x, model = clip(), tiny()
    out = runner()(3, x)
    features, _ = quick_jit(lambda c: model.glance(c))(resolution.nearest(x, (SIDES[3],) * 2))
    wanted = model.heads[3](model.rnn(features))
    np.testing.assert_allclose(out.frame_logits, wanted, rtol=1e-3, atol=1e-3)


def test_a_clip_of_nothing_but_skips_says_nothing():
    out = runner()(SKIP2, clip())
    assert not np.asarray(out.logits).any() and not np.asarray(out.frame_logits).any()


# Skipping


def by_loops(x, weights, kernel, bias, hold_cell=True):
    """The choices and states of one clip, frame by frame."""
    hidden = len(weights.kernel_h)
    h = c = np.zeros(hidden)
    choices, states, until = [], [], 0
    for t, frame in enumerate(x):
        gates = frame @ weights.kernel_x + weights.bias_x + h @ weights.kernel_h + weights.bias_h
        i, f, g, o = np.split(gates, 4)
        i, f, o = (1 / (1 + np.exp(-a)) for a in (i, f, o))
        new_c = f * c + i * np.tanh(g)
        new_h = o * np.tanh(new_c)
        states.append(new_h)
        if t < until:  # inside a skip
            choices.append(choices[-1])
            c = c if hold_cell else new_c
        else:
            h, c = new_h, new_c
            choices.append(int(np.argmax(h @ kernel + bias)))
            until = t + LENGTHS[choices[-1]]
    return choices, np.stack(states)


def policy_weights(seed, inputs=3, hidden=4):
    rng = np.random.default_rng(seed)
    shapes = ((inputs, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,), (4 * hidden,), (hidden, 7), (7,))
    *of_lstm, kernel, bias = (2 * rng.standard_normal(s).astype(np.float32) for s in shapes)
    return lstm.Weights(*of_lstm), 4 * kernel, bias


@functools.cache
def chooser(hold_cell):
    def choose(x, weights, kernel, bias):
        return resolution.choose(x, weights, kernel, bias, lengths=LENGTHS, hold_cell=hold_cell)

    return quick_jit(choose)


@pytest.mark.parametrize("hold_cell", [True, False])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999))
def test_skips_last_as_long_as_they_say_and_hold_the_state(hold_cell, seed):
    weights, kernel, bias = policy_weights(seed)
    x = np.random.default_rng(seed).standard_normal((3, 9, 3)).astype(np.float32)
    choices, states = chooser(hold_cell)(x, weights, kernel, bias)
    for clip in range(3):
        wanted, wanted_states = by_loops(x[clip], weights, kernel, bias, hold_cell)
        np.testing.assert_array_equal(choices[clip], one_hot(*wanted))
        np.testing.assert_allclose(states[clip], wanted_states, rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 9999))
def test_what_a_skipped_frame_shows_changes_nothing(seed):
    weights, kernel, bias = policy_weights(seed)
    x = np.random.default_rng(seed).standard_normal((3, 9, 3)).astype(np.float32)
    choices, states = chooser(True)(x, weights, kernel, bias)
    read = np.asarray(resolution.asked(choices, LENGTHS)) == 1
    changed = np.where(read[..., None], x, x + 3)
    again, states_again = chooser(True)(changed, weights, kernel, bias)
    np.testing.assert_array_equal(choices, again)
    np.testing.assert_array_equal(np.asarray(states)[read], np.asarray(states_again)[read])


def test_where_the_policy_network_is_asked():
    choices = one_hot(
        [SKIP4] * 4 + [0, SKIP2, SKIP2, SKIP2], [SKIP1, SKIP1, 3, SKIP2, SKIP2, SKIP4, SKIP4, SKIP4]
    )
    asked = resolution.asked(jnp.asarray(choices), LENGTHS)
    np.testing.assert_array_equal(asked, [[1, 0, 0, 0, 1, 1, 0, 1], [1, 1, 1, 1, 0, 1, 0, 0]])


# Cost


def test_a_clip_costs_the_sum_of_what_it_chose():
    model = full()
    choices = one_hot([0, 1, 2, 3, SKIP1, SKIP2, SKIP2, 0], [SKIP4] * 8)
    nets = [
        nnx.eval_shape(lambda name=name: create_model(name)).count((side, side)).dense
        for name, side in (("tsn_r50", 224), ("tsn_r34", 168), ("tsn_r18", 112))
    ]
    glance = model.glance.count((84, 84)).dense + 2 * 4 * 512 * (1280 + 512) + 2 * 512 * 7
    wanted = [2 * nets[0] + nets[1] + nets[2] + 2 * 512 * 174 + 7 * glance, 2 * glance]
    cost = flops.count(model, {"resolution": choices[:, :, None]})
    np.testing.assert_allclose(cost.actual, wanted, rtol=1e-5)
    np.testing.assert_array_equal(cost.upper, cost.actual)
    assert cost.dense == 8 * (nets[0] + glance) == 8 * model.count((224, 224)).dense
    always = flops.count(model, {"resolution": np.tile(one_hot(0), (1, 8, 1, 1))})
    np.testing.assert_allclose(always.actual, always.dense, rtol=1e-6)


def test_the_published_average_counts_a_skip_cut_off_by_the_end_in_part():
    model = full()
    policy = model.count((224, 224)).sites["resolution"].policy
    whole, cut = ({"resolution": np.tile(one_hot(SKIP4), (1, t, 1, 1))} for t in (8, 6))
    for policies, exact, published in ((whole, 2, 2), (cut, 2, 1.5)):
        np.testing.assert_allclose(flops.count(model, policies).actual, exact * policy, rtol=1e-4)
        found = flops.count(model, policies, published=True).actual
        np.testing.assert_allclose(found, published * policy, rtol=1e-4)


def test_policies_of_another_model():
    model = nnx.eval_shape(lambda: create_model("arnet_tiny"))
    with pytest.raises(UserError, match=r"expected the sites \['resolution'\] of 'arnet_tiny'"):
        flops.count(model, {})
    with pytest.raises(UserError, match=r"expected \(B, T, 1, 7\) at resolution"):
        flops.count(model, {"resolution": np.zeros((1, 8, 2, 7))})


# Sizes


@pytest.mark.parametrize("classes", [174, 200])
def test_parameters(classes):
    """The paper: 63.0M. The sum of torchvision's nets without classifiers, and of what joins them."""
    nets = 23_508_032 + 21_284_672 + 11_176_512 + 2_223_872
    joins = 4 * 512 * (1280 + 512) + 2 * 4 * 512 + 513 * 7
    heads = (2049 + 3 * 513) * classes
    model = full(classes)
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert count == nets + joins + heads
    assert 62.4e6 < count < 63.0e6


def test_mobilenet_costs_300_million():
    """Sandler et al. 2018, table 4: 300M multiply-adds; ours counts the norms, but no classifier."""
    net = nnx.eval_shape(lambda: MobileNetV2(rngs=nnx.Rngs(0)))
    norms = 0
    side = 224
    for layer in (net.stem, *(layer for block in net.blocks for layer in block.layers), net.head):
        side = costs.conv_out(side, layer.kernel, layer.stride, layer.kernel // 2)
        norms += 2 * layer.bn.scale.size * side * side
    assert side == 7
    macs = net.count((224, 224)).dense - norms - 1280 * 50 + 1280 * 1000
    assert macs == pytest.approx(300.8e6, rel=1e-3)


@pytest.mark.parametrize(("features", "stride", "expansion"), [(4, 1, 3), (4, 2, 3), (6, 1, 1)])
def test_an_inverted_residual_is_its_formula(features, stride, expansion):
    block = filled(lambda: InvertedResidual(4, features, stride, expansion, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 4, 4)).astype(np.float32)
    out = x
    for layer in block.layers:
        kernel = np.asarray(layer.conv.kernel[...])
        if layer.groups > 1:
            padded = np.pad(out, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
            taps = [
                padded[:, :, i : i + 4 : stride, j : j + 4 : stride] * kernel[i, j, 0]
                for i in range(3)
                for j in range(3)
            ]
            out = sum(taps)
        else:
            out = out @ kernel[0, 0]
        mean, var = layer.bn.running
        out = (out - mean) / np.sqrt(var + 1e-5) * layer.bn.scale[...] + layer.bn.bias[...]
        out = np.clip(out, 0, 6) if layer is not block.layers[-1] else out
    if stride == 1 and features == 4:
        out = out + x
    np.testing.assert_allclose(block(x, False), out, rtol=1e-4, atol=1e-4)


# The whole


def test_randomness_is_the_key_s():
    draws = [runner_of_any()(clip(), key) for key in (None, None, *map(jax.random.key, (1, 1, 2)))]
    for i, j in ((0, 1), (2, 3)):
        np.testing.assert_array_equal(draws[i].logits, draws[j].logits)
    chosen = [np.asarray(out.policies["resolution"]).argmax(-1) for out in draws]
    assert (chosen[2] != chosen[4]).any()


@functools.cache
def runner_of_any():
    """A model whose decisions are about equally likely, so that noise decides."""
    model = make()
    model.decide.bias[...] = jnp.zeros(7)
    model.decide.kernel[...] *= 0.01
    return quick_jit(model.__call__)


@pytest.mark.parametrize("key", [None, jax.random.key(0)])
def test_bfloat16_computes_and_says_float32(key):
    model = nnx.eval_shape(lambda: create_model("arnet_tiny", dtype="bfloat16"))
    graph, state = nnx.split(model)
    out = jax.eval_shape(lambda s, c: nnx.merge(graph, s)(c, key), state, clip())
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype("float32")}
    jaxpr = str(jax.make_jaxpr(lambda s, c: nnx.merge(graph, s)(c, key))(state, clip()))
    convolutions = [line for line in jaxpr.splitlines() if "= conv_general_dilated" in line]
    assert len(convolutions) > 10 and all(":bf16[" in line for line in convolutions)


def test_the_logits_are_the_mean_over_the_frames_used():
    out = runner_of_any()(clip(), jax.random.key(3))
    used = np.asarray(out.policies["resolution"])[:, :, 0, :4].sum(-1)
    assert 0 < used.sum() < used.size
    np.testing.assert_allclose(
        out.logits, out.frame_logits.sum(1) / np.maximum(used.sum(1), 1)[:, None], rtol=1e-4, atol=1e-3
    )
    assert not np.asarray(out.frame_logits)[used == 0].any()


def test_the_cost_reaches_the_policy_network_and_nothing_else():
    model = create_model("arnet_tiny", num_classes=CLASSES)  # undecided: every action is about as likely
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @quick_jit
    @jax.grad
    def gradient(params):
        net = nnx.merge(graph, params, rest, copy=True)
        out = net(clip(), jax.random.key(0))
        cost = flops.count(net, out.policies, image_size=SIDE)
        return cost.actual.sum() / cost.dense

    found = nnx.to_pure_dict(gradient(params))
    for part, reached in (("decide", True), ("rnn", True), ("glance", True), ("backbones", False)):
        for leaf in jax.tree.leaves(found[part]):
            assert np.isfinite(leaf).all() and np.asarray(leaf).any() == reached
    # A push towards a skip saves, one towards the largest resolution costs.
    bias = np.asarray(found["decide"]["bias"])
    assert bias[0] > 0 and (bias[SKIP1:] < 0).all()


def test_a_published_state_dict():
    source, model = (filled(lambda: create_model("arnet_tiny", num_classes=CLASSES), seed) for seed in (1, 0))
    given = to_torch(source)
    for key, shape in {
        "base_model_list.2.layer3.0.conv1.weight": (64, 32, 3, 3),
        "base_model_list.0.layer2.0.downsample0.weight": (32, 16, 1, 1),
        "new_fc_list.0.weight": (CLASSES, 64),
        "lite_backbone.features.0.0.weight": (8, 3, 3, 3),
        "lite_backbone.features.1.conv.0.0.weight": (8, 1, 3, 3),  # depthwise, without expansion
        "lite_backbone.features.1.conv.1.weight": (8, 8, 1, 1),
        "lite_backbone.features.2.conv.0.0.weight": (48, 8, 1, 1),
        "lite_backbone.features.2.conv.1.1.running_var": (48,),
        "lite_backbone.features.2.conv.2.weight": (12, 48, 1, 1),
        "lite_backbone.features.2.conv.3.bias": (12,),
        "lite_backbone.features.4.1.weight": (32,),
        "rnn.weight_hh": (128, 32),
        "linear.weight": (7, 32),
        "lite_fc.bias": (CLASSES,),
    }.items():
        assert given[key].shape == shape
    from_torch(model, {"module." + key: value for key, value in given.items()})
    chex.assert_trees_all_equal(nnx.state(model), nnx.state(source))


def test_what_cannot_be_made():
    for options, message in (
        ({"tau": 0}, "tau: expected more than 0, found 0"),
        ({"lstm_hidden": 0}, "lstm_hidden: expected more than 0, found 0"),
        ({"shift": "tsm"}, "unknown option of 'arnet_tiny' 'shift'"),
    ):
        with pytest.raises(UserError, match=message):
            create_model("arnet_tiny", **options)
    with pytest.raises(UserError, match="unknown model 'arnet_r18'"):
        create_model("arnet_r18")
    with pytest.raises(UserError, match="clip: expected"):
        tiny()(jnp.zeros((2, 16, 16, 3)))


@pytest.mark.parametrize("name", ["arnet_tiny", "trn_tiny"])
def test_weights_of_another_task_fit_but_for_what_classifies(name):
    source = filled(lambda: create_model(name, num_classes=CLASSES), seed=1)
    model = filled(lambda: create_model(name, num_classes=CLASSES + 2))
    with pytest.raises(UserError, match=r"expected \(6,"):
        from_torch(model, to_torch(source))
    from_torch(model, to_torch(source), allow_missing=["head"])
    found, given = (nnx.to_pure_dict(nnx.state(m)) for m in (model, source))
    for part in ("backbones", "glance", "decide") if name == "arnet_tiny" else ("backbone",):
        chex.assert_trees_all_equal(found[part], given[part])
