"""The FLOPs estimator on whole models: bounds, exactness, gradients."""

import functools
import math
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import quick_jit

from adafuse_jax import create_model, flops
from adafuse_jax.errors import UserError

NETS = ["adafuse_tsn_r18", "adafuse_tsn_inc"]
SUBSETS = [("skip", "reuse", "keep"), ("reuse", "keep"), ("skip", "keep")]


@functools.cache
def model(name="adafuse_tsn_r18", **options):
    """A model without weights: counting needs none."""
    return nnx.eval_shape(lambda: create_model(name, **options))


def constant(model, action, frames=8, batch=2):
    """The policies that decide `action` everywhere."""
    row = np.eye(len(model.actions), dtype=np.float32)[model.actions.index(action)]
    return OrderedDict(
        (name, np.broadcast_to(row, (batch, frames, block.fusion.features, len(model.actions))))
        for name, block in model.backbone.named_blocks()
        if block.fusion is not None
    )


def random(model, seed, frames=4, batch=2):
    draw = np.random.default_rng(seed)
    n = len(model.actions)
    return OrderedDict(
        (name, np.eye(n, dtype=np.float32)[draw.integers(0, n, policy.shape[:-1])])
        for name, policy in constant(model, "keep", frames, batch).items()
    )


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("actions", SUBSETS)
def test_keeping_all_costs_the_dense_net(name, actions):
    net = model(name, actions=actions)
    cost = flops.count(net, constant(net, "keep"))
    assert cost.dense == 8 * net.count((224, 224)).dense
    for macs in (cost.actual, cost.upper):  # as near as float32 comes to so large a number
        np.testing.assert_allclose(macs, [cost.dense] * 2, rtol=1e-7)


def test_skipping_all_leaves_what_no_policy_can_save():
    net = model()
    cost = flops.count(net, constant(net, "skip"))
    fixed = cost.dense
    for name, block in net.backbone.named_blocks():
        side = 56 // 2 ** (int(name[5]) - 1)  # of the output of stage layer1..4
        for i_in in (block.in_features, block.width):
            fixed -= 8 * side * side * 9 * i_in * block.width
    assert cost.actual == pytest.approx([fixed] * 2, rel=1e-6)
    assert fixed < 0.2 * cost.dense


def test_skipping_all_of_bn_inception_leaves_the_middle_convolutions():
    """Saved are each module's last convolutions of its branches, and what reads the next module's input."""
    net = model("adafuse_tsn_inc")
    cost = flops.count(net, constant(net, "skip"))
    fixed = cost.dense
    for name, module in net.backbone.named_blocks():
        side = {"3": 28, "4": 14, "5": 7}[name[-2]]
        last = side // 2 if name[-2:] in ("3c", "4e") else side  # where the last convolutions are
        for part, unit in module.units.items():
            macs = math.prod(unit.conv.kernel.shape) + unit.features
            if part in ("1x1", "3x3", "double_3x3_2", "pool_proj"):
                fixed -= 8 * macs * last**2
            if part in ("1x1", "3x3_reduce", "double_3x3_reduce", "pool_proj") and name != "inception_3a":
                fixed -= 8 * macs * side**2
    assert cost.actual == pytest.approx([fixed] * 2, rel=1e-6)
    assert 0 < fixed < cost.dense / 2


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("actions", SUBSETS)
@pytest.mark.parametrize("seed", [0, 1])
def test_actual_upper_dense_in_this_order(name, actions, seed):
    net = model(name, actions=actions)
    cost = flops.count(net, random(net, seed))
    assert cost.actual.shape == cost.upper.shape == (2,)
    assert ((cost.actual > 0) & (cost.actual < cost.upper)).all()
    assert (cost.upper <= cost.dense).all()
    if "skip" not in actions:
        np.testing.assert_allclose(cost.upper, [cost.dense] * 2, rtol=1e-7)


def test_a_clip_costs_the_same_in_any_batch():
    net = model()
    policies = random(net, 0)
    both = flops.count(net, policies)
    alone = flops.count(net, {name: policy[1:] for name, policy in policies.items()})
    assert alone.dense == both.dense
    np.testing.assert_allclose(alone.actual, both.actual[1:], rtol=1e-6)


def test_published_slip_concerns_the_last_frame_alone():
    """Both count alike where the last two frames keep the same channels."""
    net = model()
    policies = random(net, 0)
    for policy in policies.values():
        policy[:, -1] = policy[:, -2]
    ours, published = (flops.count(net, policies, published=p) for p in (False, True))
    np.testing.assert_array_equal(ours.actual, published.actual)
    other = random(net, 0)
    ours, published = (flops.count(net, other, published=p) for p in (False, True))
    assert (ours.actual != published.actual).all()
    np.testing.assert_array_equal(ours.upper, published.upper)


def test_without_fusion_all_is_dense():
    net = model("tsn_r18")
    cost = flops.count(net, {}, num_frames=3)
    assert cost.dense == 3 * net.count((224, 224)).dense == float(cost.actual[0]) == float(cost.upper[0])


def test_image_size_counts():
    """Four times the pixels: four times all but the classifier and the average's division."""
    net = model("tsn_r18")
    head = 8 * (2 * 512 * 174 + 512)
    small, large = (flops.count(net, {}, image_size=size).dense for size in (224, 448))
    assert large - head == 4 * (small - head)
    wide, high = (flops.count(net, {}, image_size=size).dense for size in ((224, 448), (448, 224)))
    assert wide - head == high - head == 2 * (small - head)


def test_gradient_reaches_the_policy_logits():
    net = create_model("adafuse_tsn_tiny", num_classes=3)  # all undecided, so every channel feels it
    clip = np.random.default_rng(0).standard_normal((2, 3, 16, 16, 3)).astype(np.float32)
    is_bias = nnx.All(nnx.PathContains("fc1"), nnx.PathContains("bias"))
    graph, biases, rest = nnx.split(net, is_bias, ...)

    @quick_jit
    @jax.jacrev
    def gradient(biases):
        net = nnx.merge(graph, biases, rest, copy=True)
        cost = flops.count(net, net(clip, jax.random.key(0)).policies, image_size=16)
        return jnp.stack([cost.actual.mean(), cost.upper.mean()]) / cost.dense

    for of_actual_and_upper in jax.tree.leaves(gradient(biases)):
        of_actual_and_upper = np.asarray(of_actual_and_upper)
        assert np.isfinite(of_actual_and_upper).all()
        assert (np.abs(of_actual_and_upper) > 0).mean() > 0.9
    # Where no later site is affected, a push towards skip saves for every channel, whatever it decided.
    last = np.asarray(gradient(biases)["backbone"]["layer3"][0]["fusion"]["fc1"]["bias"][...])
    assert (last.reshape(2, -1, 3)[:, :, 0] < 0).all()


def test_compiled_as_well():
    net = model()
    policies = random(net, 0)
    compiled = jax.jit(lambda p: flops.count(net, p))(policies)
    plain = flops.count(net, policies)
    assert compiled.dense == plain.dense
    np.testing.assert_allclose(compiled.actual, plain.actual, rtol=1e-6)


def test_order_of_the_sites_does_not_matter():
    net = model()
    policies = random(net, 0)
    cost = flops.count(net, dict(reversed(policies.items())))
    np.testing.assert_array_equal(cost.actual, flops.count(net, policies).actual)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: model("adafuse_tsn_r34"), "policies: expected the sites .*layer1.0.* of 'adafuse_tsn_r18'"),
        (lambda: model("tsn_r18"), r"found \[\]"),
        (lambda: model(actions=("reuse", "keep")), r"expected \(B, T, 64, 3\) at layer1.0 .* 64, 2\)"),
    ],
)
def test_policies_of_another_model(other, message):
    with pytest.raises(UserError, match=message):
        flops.count(model(), constant(other(), "keep"))


def test_policies_for_a_model_without_fusion():
    with pytest.raises(UserError, match=r"expected the sites \[\] of 'tsn_r18', found \['layer1.0'"):
        flops.count(model("tsn_r18"), constant(model(), "keep"))
