"""EfficientNet: its blocks' maths, where fusion sits, dropped branches, names of weights."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import filled, quick_jit

from adafuse_jax import create_model, flops
from adafuse_jax.models.efficientnet import EfficientNet, Stage
from adafuse_jax.models.mbconv import MBConv
from adafuse_jax.models.recognizer import Recognizer
from adafuse_jax.models.sites import PolicyNetworks
from adafuse_jax.ops.drop_path import drop_path
from adafuse_jax.weights import from_torch
from adafuse_jax.weights import to_torch as state_dict
from adafuse_jax.weights.published import entries, torch_shape
from adafuse_jax.weights.torchvision import efficientnet_names


@functools.cache
def shapes(name, **options):
    return nnx.eval_shape(lambda: create_model(name, **options))


# A net with one block of each kind: no expansion, stride 2, two with shortcuts (which share their fc0, fc1).
SHORT = (Stage(1, 8, 1, 1, 3), Stage(2, 16, 3, 2, 5))


def short(policies=True, share=True, **options):
    rngs = nnx.Rngs(0)
    if policies:
        options |= {"deciders": PolicyNetworks(hidden=5, share=share, rngs=rngs), "fusion_stages": (1, 2)}
    return EfficientNet(stages=SHORT, head=24, rngs=rngs, **options)


@functools.cache
def short_filled(**options):
    return filled(lambda: short(**options))


def recognizer(seed=0, **options):
    def create():
        rngs = nnx.Rngs(0)
        return Recognizer(
            "short", {}, short(**options), 3, dropout=0.5, actions=("skip", "reuse", "keep"), rngs=rngs
        )

    return filled(create, seed)


def maps(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# Maths


def swish(x):
    return x / (1 + np.exp(-x))


def norm(bn, x):
    mean, var = (np.asarray(v) for v in bn.running)
    return (x - mean) / np.sqrt(var + 1e-3) * np.asarray(bn.scale) + np.asarray(bn.bias)


def depthwise(kernel, x, stride, padding):
    """(N, H, W, C) by (k, k, 1, C), from the definition."""
    k, size = kernel.shape[0], x.shape[1]
    out_size = -(-size // stride)
    before = after = k // 2
    if padding == "same":  # TensorFlow's: as much as needed, the odd pixel at the end
        total = max((out_size - 1) * stride + k - size, 0)
        before, after = total // 2, total - total // 2
    x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    out = np.zeros((len(x), out_size, out_size, x.shape[-1]))
    for i in range(out_size):
        for j in range(out_size):
            window = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
            out[:, i, j] = np.einsum("nyxc,yxc->nc", window, kernel[:, :, 0])
    return out


def weights(conv):
    return np.asarray(conv.kernel, np.float64), 0 if conv.bias is None else np.asarray(conv.bias)


def pointwise(conv, x):
    kernel, bias = weights(conv)
    return x @ kernel[0, 0] + bias


def mbconv(features=8, **options):
    settings = {"expansion": 3, "kernel": 3, "stride": 1, "drop_rate": 0.0, "padding": "same"} | options
    return filled(lambda: MBConv(8, features, bn_epsilon=1e-3, dtype=None, rngs=nnx.Rngs(0), **settings))


def run(block, x, key=None, drop_key=None):
    return quick_jit(lambda *given: block(*given, False))(x, key, drop_key)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 5),
        ({"expansion": 1}, 4),
        ({"features": 16}, 4),
        ({"stride": 2, "kernel": 5}, 6),
        ({"stride": 2, "kernel": 3}, 5),
        ({"stride": 2, "kernel": 5, "padding": "torch"}, 6),
        ({"stride": 2, "kernel": 3, "padding": "torch"}, 5),
    ],
)
def test_a_block_is_its_equations(options, size):
    block, x = mbconv(**options), maps(2, 3, size, size, 8)
    out, policy = run(block, x)
    assert policy is None

    frames = wanted = x.reshape(6, size, size, 8).astype(np.float64)
    if block.expand_conv is not None:
        wanted = swish(norm(block.bn0, pointwise(block.expand_conv, wanted)))
    kernel, _ = weights(block.depthwise_conv)
    wanted = swish(norm(block.bn1, depthwise(kernel, wanted, block.stride, options.get("padding", "same"))))
    squeezed = swish(pointwise(block.se_reduce, wanted.mean((1, 2), keepdims=True)))
    assert squeezed.shape[-1] == 2  # a quarter of the block's input
    wanted = wanted / (1 + np.exp(-pointwise(block.se_expand, squeezed)))
    wanted = norm(block.bn2, pointwise(block.project_conv, wanted))
    if wanted.shape == frames.shape:
        wanted = wanted + frames
    assert out.shape == (2, 3, *wanted.shape[1:])
    np.testing.assert_allclose(out.reshape(wanted.shape), wanted, rtol=2e-4, atol=2e-3)


def test_the_policy_sees_the_input_and_its_site_lies_before_the_depthwise_convolution():
    """Policy and fused map are those of the fusion alone; fusing everything away leaves the norm's bias."""
    net, x = short_filled(), maps(2, 3, 4, 4, 8)
    block = net.blocks[1]
    out, policy = run(block, x)
    log_probs = quick_jit(block.fusion.log_policy)(x)
    np.testing.assert_array_equal(policy.argmax(-1), log_probs.argmax(-1))

    y = swish(norm(block.bn0, pointwise(block.expand_conv, x.astype(np.float64))))
    before = np.concatenate([np.zeros_like(y[:, :1]), y[:, :-1]], 1)
    action = np.asarray(policy.argmax(-1))[:, :, None, None]
    assert set(action.flat) == {0, 1, 2}
    fused = np.where(action == 2, y, np.where(action == 1, before, 0))
    kernel, _ = weights(block.depthwise_conv)
    wanted = depthwise(kernel, fused.reshape(6, 4, 4, 16), 2, "same").reshape(2, 3, 2, 2, 16)
    wanted = swish(norm(block.bn1, wanted))
    # A skipped channel is one value in all pixels of a frame, what the norm makes of zeros.
    skipped = np.broadcast_to(action == 0, wanted.shape)
    zeros = np.broadcast_to(swish(norm(block.bn1, np.zeros(16))), wanted.shape)
    np.testing.assert_allclose(wanted[skipped], zeros[skipped])
    assert (np.abs(zeros) > 1e-3).all()
    wanted = wanted * np.asarray(quick_jit(block.excitation)(wanted.astype(np.float32)))
    wanted = norm(block.bn2, pointwise(block.project_conv, wanted))
    np.testing.assert_allclose(out, wanted, rtol=2e-4, atol=2e-3)


def without_policies(given):
    return {name: value for name, value in given.items() if "gate_" not in name}


def test_keeping_everything_is_the_net_without_fusion():
    fused, plain = recognizer(), recognizer(policies=False, seed=1)
    from_torch(plain, without_policies(state_dict(fused)))
    for block in fused.backbone.blocks[1:]:
        block.fusion.fc1.bias[...] = jnp.tile(jnp.array([0.0, 0.0, 1e6]), block.fusion.features)
    x = maps(2, 3, 16, 16, 3)
    out, wanted = quick_jit(fused.__call__)(x), quick_jit(plain.__call__)(x)
    assert list(out.policies) == ["blocks.1", "blocks.2", "blocks.3"] and not wanted.policies
    assert all((np.asarray(p)[..., 2] == 1).all() for p in out.policies.values())
    np.testing.assert_allclose(out.frame_logits, wanted.frame_logits, rtol=1e-4, atol=1e-4)


def test_a_site_draws_with_its_block_s_own_key():
    net = short_filled()

    @quick_jit
    def both(x, key):
        frames = nnx.silu(net.bn0(net.conv_stem(x.reshape(6, *x.shape[2:]))))
        seen, by_hand = frames.reshape(2, 3, *frames.shape[1:]), {}
        for i, block in enumerate(net.blocks):
            seen, policy = block(seen, jax.random.fold_in(key, i), None, False)
            by_hand |= {} if policy is None else {f"blocks.{i}": policy}
        return net(x, key)[1], by_hand

    policies, by_hand = both(maps(2, 3, 16, 16, 3), jax.random.key(3))
    chex.assert_trees_all_equal(dict(policies), by_hand)


def test_bfloat16_computes_near_float32():
    x = maps(2, 3, 16, 16, 3)
    full, half = (
        quick_jit(recognizer(policies=False, dtype=dtype).backbone.__call__)(x)[0]
        for dtype in (None, jnp.dtype("bfloat16"))
    )
    assert half.dtype == jnp.bfloat16
    assert 0 < np.abs(full - half.astype(np.float32)).max() < 0.05 * np.abs(full).max()


def test_gradients_reach_every_policy_and_convolution():
    graph, params, rest = nnx.split(recognizer(), nnx.Param, ...)
    x, key = maps(2, 3, 16, 16, 3), jax.random.key(0)

    @quick_jit
    @jax.grad
    def gradient(params):
        model = nnx.merge(graph, params, rest, copy=True)
        out = model(x, key, train=True)
        cost = flops.count(model, out.policies, image_size=16)
        return (out.logits**2).mean() + cost.actual.mean() / cost.dense

    kernels = [leaf for path, leaf in nnx.to_flat_state(gradient(params)) if path[-1] == "kernel"]
    assert len(kernels) == 1 + 4 + 3 * 5 + 1 + 2 * 2 + 1  # stem, blocks, head, two pairs of fc, classifier
    for kernel in kernels:
        assert np.isfinite(kernel[...]).all()
        assert np.abs(kernel[...]).max() > 1e-4


# Dropped branches


def test_drop_path_drops_whole_frames_and_keeps_the_mean():
    x = 1 + np.abs(maps(40, 50, 2, 2, 3))
    out = np.asarray(drop_path(x, jax.random.key(0), 0.3))
    dropped = (out == 0).all((2, 3, 4))
    np.testing.assert_allclose(out[~dropped], x[~dropped] / 0.7, rtol=1e-6)
    # 2000 draws: 5 standard deviations are 0.051. Neighbours agree by chance.
    assert abs(dropped.mean() - 0.3) < 0.051
    for a, b in ((dropped[1:], dropped[:-1]), (dropped[:, 1:], dropped[:, :-1])):
        assert abs((a == b).mean() - (0.3**2 + 0.7**2)) < 0.06
    assert abs((out - x).mean()) < 5 * (x.mean() * np.sqrt(0.3 / 0.7 / 2000))


@pytest.mark.parametrize("backbone", ["b0", "b1", "b2", "b3"])
def test_drop_rates_rise_linearly(backbone):
    rates = [block.drop_rate for block in shapes(f"tsn_{backbone}", drop_path=0.4).backbone.blocks]
    np.testing.assert_allclose(rates, 0.4 * np.arange(len(rates)) / len(rates))
    assert shapes(f"tsn_{backbone}").backbone.blocks[-1].drop_rate == pytest.approx(
        0.2 * (1 - 1 / len(rates))
    )


def test_a_dropped_branch_leaves_the_shortcut():
    block, x = mbconv(drop_rate=0.5), maps(4, 8, 4, 4, 8)
    (whole, _), (out, _) = run(block, x), run(block, x, None, jax.random.key(0))
    dropped = (out == x).all((2, 3, 4))
    assert 0 < dropped.mean() < 1
    kept = (x + 2 * (whole - x))[~dropped]
    np.testing.assert_allclose(out[~dropped], kept, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{"features": 16}, {"stride": 2}])
def test_no_frame_is_dropped_where_there_is_no_shortcut(options):
    block, x = mbconv(drop_rate=0.5, **options), maps(4, 8, 4, 4, 8)
    (whole, _), (out, _) = run(block, x), run(block, x, None, jax.random.key(0))
    np.testing.assert_array_equal(out, whole)


def test_branches_are_dropped_in_training_under_a_key_only():
    x, keys = maps(2, 3, 16, 16, 3), [jax.random.key(seed) for seed in (0, 0, 1)]

    def runs(drop):
        graph, state = nnx.split(short_filled(drop_path=drop))

        def of(*arguments):
            return nnx.merge(graph, state, copy=True)(x, *arguments)

        still = quick_jit(lambda key: (of(None, False), of(key, False), of(None, True)))(keys[0])
        train = quick_jit(lambda key: of(key, True))
        return still, [train(key) for key in keys]

    (still, dropped), (plain_still, plain) = runs(0.9), runs(0.0)
    chex.assert_trees_all_equal(still, plain_still)
    features = [features for features, _ in dropped]
    np.testing.assert_array_equal(features[0], features[1])
    assert (features[0] != features[2]).any() and (features[0] != plain[0][0]).any()
    # The first two sites lie before any dropped branch: they see and decide the same.
    for site in ("blocks.1", "blocks.2"):
        np.testing.assert_array_equal(dropped[0][1][site], plain[0][1][site])


def test_every_branch_draws_for_itself(monkeypatch):
    """With a key that no site has: neither the branches among them nor they and the policies go together."""
    net, key, used = short_filled(), jax.random.key(0), []
    monkeypatch.setattr("adafuse_jax.models.mbconv.drop_path", lambda x, key, rate: used.append(key) or x)

    @quick_jit
    def keys(clip):
        nnx.merge(*nnx.split(net), copy=True)(clip, key, True)
        sites = [jax.random.fold_in(key, i) for i in range(len(net.blocks))]
        return [jax.random.key_data(k) for k in (*used, *sites)]

    found = {tuple(np.asarray(k)) for k in keys(maps(2, 3, 16, 16, 3))}
    assert len(used) == 2 and len(found) == 2 + len(net.blocks)


# Weights


@pytest.mark.parametrize("share", [True, False])
def test_every_variable_has_its_names_and_takes_what_they_hold(share):
    source, model = recognizer(seed=1, share=share), recognizer(share=share)
    listed = list(entries(model))
    names = [name for entry in listed for name in entry.names]
    assert len(set(names)) == len(names)
    variables = jax.tree.leaves(nnx.state(model), is_leaf=lambda v: isinstance(v, nnx.Variable))
    assert len({id(entry.variable) for entry in listed}) == len(listed) == len(variables)
    from_torch(model, state_dict(source))
    chex.assert_trees_all_equal(nnx.state(model), nnx.state(source))


# A part of what L. Melas-Kyriazi's and torchvision's nets b0 hold, under both names.
SAME = [
    ("_conv_stem.weight", "features.0.0.weight", (32, 3, 3, 3)),
    ("_bn0.running_var", "features.0.1.running_var", (32,)),
    ("_blocks.0._depthwise_conv.weight", "features.1.0.block.0.0.weight", (32, 1, 3, 3)),
    ("_blocks.0._se_reduce.weight", "features.1.0.block.1.fc1.weight", (8, 32, 1, 1)),
    ("_blocks.0._se_expand.bias", "features.1.0.block.1.fc2.bias", (32,)),
    ("_blocks.0._bn2.bias", "features.1.0.block.2.1.bias", (16,)),
    ("_blocks.1._expand_conv.weight", "features.2.0.block.0.0.weight", (96, 16, 1, 1)),
    ("_blocks.1._bn0.weight", "features.2.0.block.0.1.weight", (96,)),
    ("_blocks.4._depthwise_conv.weight", "features.3.1.block.1.0.weight", (240, 1, 5, 5)),
    ("_blocks.4._se_reduce.weight", "features.3.1.block.2.fc1.weight", (10, 240, 1, 1)),
    ("_blocks.15._project_conv.weight", "features.7.0.block.3.0.weight", (320, 1152, 1, 1)),
    ("_blocks.15._bn2.running_mean", "features.7.0.block.3.1.running_mean", (320,)),
    ("_conv_head.weight", "features.8.0.weight", (1280, 320, 1, 1)),
    ("_bn1.weight", "features.8.1.weight", (1280,)),
]


@pytest.mark.parametrize(("published", "torchvision", "shape"), SAME)
def test_names_of_others(published, torchvision, shape):
    model = shapes("tsn_b0")
    held = {name: torch_shape(name, variable) for names, variable in entries(model) for name in names}
    assert held[f"base_model.{published}"] == shape
    layer, _, part = torchvision.rpartition(".")
    assert f"{efficientnet_names(model.backbone)[layer]}.{part}" == f"base_model.{published}"


def test_torchvision_has_as_many_variables():
    """360 in its b0, 49 of them constants of norms, and no two of one name."""
    model = shapes("tsn_b0")
    names = efficientnet_names(model.backbone)
    held = [name for entry in entries(model) for name in entry.names]
    assert {name.rpartition(".")[0] for name in held} == set(names.values())
    assert len(set(names.values())) == len(names)
    assert len(held) == len(set(held)) == 360 - 49


def test_weights_under_the_bare_names():
    """As the nets of ImageNet are published, not wrapped as `base_model`."""
    source, model = recognizer(seed=1, policies=False), recognizer(policies=False)
    given = {
        name.removeprefix("base_model.").replace("new_fc", "_fc"): value
        for name, value in state_dict(source).items()
    }
    from_torch(model, given)
    chex.assert_trees_all_equal(nnx.state(model), nnx.state(source))


def test_weights_under_torchvision_s_names():
    source, model = recognizer(seed=1, policies=False), recognizer(policies=False)
    theirs = {ours: name for name, ours in efficientnet_names(model.backbone).items()}
    given = {}
    for name, value in state_dict(source).items():
        layer, _, part = name.rpartition(".")
        given[f"{theirs[layer]}.{part}"] = value
    from_torch(model, given)
    chex.assert_trees_all_equal(nnx.state(model), nnx.state(source))
