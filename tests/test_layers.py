"""The NNX layer: a clip is the scan of its frames, bit for bit, and nothing looks ahead."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import filled, quick_jit

from adafuse_jax.errors import UserError
from adafuse_jax.layers import BatchNorm, TemporalFusion

SUBSETS = [("skip", "reuse", "keep"), ("reuse", "keep"), ("skip", "keep"), ("skip", "reuse"), ("keep",)]
IN, CHANNELS, FRAMES = 5, 8, 4
# actions, group_size, seed of the key
RULES = [(actions, *rest) for actions in SUBSETS for rest in ((1, None), (1, 7), (4, 7))]


@functools.cache
def make(actions=SUBSETS[0], group_size=1, **options):
    """A layer with random weights."""
    return filled(
        lambda: TemporalFusion(
            IN, CHANNELS, hidden=16, actions=actions, group_size=group_size, rngs=nnx.Rngs(0), **options
        )
    )


@functools.cache
def forward(*rule):
    """`make(*rule)`'s clip form, compiled once for all tests."""
    return jax.jit(make(*rule).__call__)


def clip(seed=0, batch=2):
    """(x, y) of different sizes, as a strided convolution has."""
    random = np.random.default_rng(seed)
    shapes = (batch, FRAMES, 6, 6, IN), (batch, FRAMES, 3, 3, CHANNELS)
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


def maybe_key(seed):
    return None if seed is None else jax.random.key(seed)


@pytest.mark.parametrize(("actions", "group_size", "seed"), RULES)
def test_clip_is_the_scan_of_its_frames_bit_for_bit(actions, group_size, seed):
    (x, y), key = clip(), maybe_key(seed)
    fused, policy = forward(actions, group_size)(x, y, key)
    assert len(np.unique(np.asarray(policy).argmax(-1))) == len(actions)  # all actions occur
    scan = jax.jit(make(actions, group_size).scan)
    chex.assert_trees_all_equal(scan(x, y, key), (fused, policy))


@pytest.mark.parametrize("actions", SUBSETS)
def test_a_stream_gives_what_the_clip_gives_bit_for_bit(actions):
    fusion, (x, y), key = make(actions, 1), clip(), jax.random.key(7)
    fused, policy = forward(actions, 1)(x, y, key)
    step, carry = jax.jit(fusion.step), fusion.initial_carry(x[:, 0], y[:, 0])
    for t in range(FRAMES):
        carry, out = step(carry, x[:, t], y[:, t], jax.random.fold_in(key, t))
        chex.assert_trees_all_equal(out, (fused[:, t], policy[:, t]))


@pytest.mark.parametrize(("actions", "group_size", "seed"), RULES)
def test_fused_is_eq_3_of_the_policy(actions, group_size, seed):
    """In plain numpy, frame by frame; one decision holds for a whole group."""
    x, y = clip()
    fused, policy = forward(actions, group_size)(x, y, maybe_key(seed))
    np.testing.assert_array_equal(np.asarray(policy).sum(-1), 1)
    before = np.concatenate([np.zeros_like(y[:, :1]), y[:, :-1]], 1)
    source = {"keep": y, "reuse": before, "skip": np.zeros_like(y)}
    chosen = np.asarray(policy).argmax(-1)
    wanted = np.zeros_like(y)
    for index, action in enumerate(actions):
        wanted = np.where((chosen == index)[:, :, None, None], source[action], wanted)
    np.testing.assert_array_equal(fused, wanted)
    groups = chosen.reshape(*chosen.shape[:2], -1, group_size)
    np.testing.assert_array_equal(groups, groups[..., :1].repeat(group_size, -1))


@pytest.mark.parametrize("actions", SUBSETS[:3])
@pytest.mark.parametrize("seed", [None, 7])
def test_later_frames_change_nothing_before(actions, seed):
    (x, y), (x_other, y_other) = clip(), clip(seed=1)
    first = forward(actions, 1)(x, y, maybe_key(seed))
    first = jax.tree.map(np.asarray, first)
    for t in range(1, FRAMES):
        mixed = [np.concatenate([a[:, :t], b[:, t:]], 1) for a, b in ((x, x_other), (y, y_other))]
        other = jax.tree.map(np.asarray, forward(actions, 1)(*mixed, maybe_key(seed)))
        for ours, theirs in zip(first, other, strict=True):
            np.testing.assert_array_equal(ours[:, :t], theirs[:, :t])
        assert (first[0][:, t] != other[0][:, t]).any()


def test_without_reuse_a_frame_depends_on_no_other():
    x, y = clip()
    forwards = forward(("skip", "keep"), 1)(x, y, None)
    backwards = forward(("skip", "keep"), 1)(x[:, ::-1], y[:, ::-1], None)
    for ours, theirs in zip(forwards, backwards, strict=True):
        np.testing.assert_array_equal(np.asarray(ours)[:, ::-1], theirs)


def test_published_start():
    """N(0, 0.001) weights and no biases: every channel is undecided at first."""
    fusion = TemporalFusion(64, 64, rngs=nnx.Rngs(0))
    assert fusion.fc0.kernel.shape == (128, 512)
    assert fusion.fc1.kernel.shape == (512, 192)
    for linear in (fusion.fc0, fusion.fc1):
        assert float(jnp.std(linear.kernel[...])) == pytest.approx(0.001, rel=0.02)
        assert not linear.bias[...].any()
    log_probs = fusion.log_policy(np.random.default_rng(0).standard_normal((2, 4, 3, 3, 64)))
    np.testing.assert_allclose(jnp.exp(log_probs), 1 / 3, atol=1e-3)


def test_prior_decides_the_start():
    fusion = TemporalFusion(IN, 9, hidden=4, prior=(0, 1 / 3, 2 / 3), rngs=nnx.Rngs(0))
    _, policy = fusion(jnp.ones((1, 2, IN)), jnp.ones((1, 2, 9)))
    np.testing.assert_array_equal(policy.sum((0, 1, 2)), [0, 6, 12])
    # exp(3) / (exp(3) + 2) of the probability lies on the chosen one.
    likeliest = jnp.exp(fusion.log_policy(jnp.ones((1, 2, IN)))).max(-1)
    np.testing.assert_allclose(likeliest, np.exp(3) / (np.exp(3) + 2), atol=1e-3)


def test_sharing_leaves_the_norm_private():
    first = TemporalFusion(IN, CHANNELS, hidden=16, rngs=nnx.Rngs(0))
    second = TemporalFusion(IN, CHANNELS, hidden=16, share_with=first, rngs=nnx.Rngs(1))
    assert second.fc0 is first.fc0
    assert second.fc1 is first.fc1
    assert second.bn is not first.bn
    both = nnx.List([first, second])
    sizes = [p.size for p in jax.tree.leaves(nnx.state(both, nnx.Param))]
    assert sum(sizes) == (2 * IN * 16 + 16) + (16 * CHANNELS * 3 + CHANNELS * 3) + 2 * (16 + 16)
    x, y = clip()
    second(x, y, train=True)
    assert (second.bn.mean[...] != 0).any()
    assert (first.bn.mean[...] == 0).all()


def test_training_updates_the_running_statistics_and_nothing_else_does():
    fusion = TemporalFusion(IN, CHANNELS, hidden=16, rngs=nnx.Rngs(0))
    x, y = clip()
    before = jax.tree.map(np.array, nnx.state(fusion, nnx.BatchStat))
    fusion(x, y)
    fusion.scan(x, y)
    chex.assert_trees_all_equal(before, nnx.state(fusion, nnx.BatchStat))
    fusion(x, y, train=True)
    v = x.mean((2, 3))
    seen = np.concatenate([np.concatenate([0 * v[:, :1], v[:, :-1]], 1), v], -1).reshape(-1, 2 * IN)
    hidden = seen @ np.asarray(fusion.fc0.kernel[...])
    np.testing.assert_allclose(fusion.bn.mean[...], 0.1 * hidden.mean(0), rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(fusion.bn.var[...], 0.9 + 0.1 * hidden.var(0, ddof=1), rtol=1e-6)


def test_batch_norm_normalises_a_batch():
    norm = BatchNorm(3)
    x = 5 + 2 * np.random.default_rng(0).standard_normal((4, 6, 6, 3)).astype(np.float32)
    out = np.asarray(norm(x, train=True))
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, rtol=1e-4)
    assert norm(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_batch_norm_with_a_momentum_and_an_epsilon_of_its_own():
    norm = BatchNorm(3, momentum=0.75, epsilon=0.5)
    x = 5 + 2 * np.random.default_rng(0).standard_normal((4, 6, 6, 3)).astype(np.float32)
    flat = x.reshape(-1, 3).astype(np.float64)
    out = norm(x, train=True)
    np.testing.assert_allclose(out, (x - flat.mean(0)) / np.sqrt(flat.var(0) + 0.5), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(norm.mean[...], 0.25 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.75 + 0.25 * flat.var(0, ddof=1), rtol=1e-5)
    mean, var = norm.running
    np.testing.assert_allclose(norm(x), (x - mean) / np.sqrt(var + 0.5), rtol=1e-3, atol=1e-4)


class PlainNet(nnx.Module):
    """A user's CNN with the layer between two convolutions."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
        self.conv2 = nnx.Conv(8, 16, (3, 3), rngs=rngs)
        self.fusion = TemporalFusion(3, 8, hidden=16, rngs=rngs)
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, clip, key=None, train=False):
        y = nnx.relu(self.conv1(clip))
        fused, policy = self.fusion(clip, y, key, train)
        return self.head(nnx.relu(self.conv2(fused)).mean((1, 2, 3))), policy


def test_plugs_into_a_plain_net_and_trains():
    net = PlainNet(nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((4, 3, 8, 8, 3)).astype(np.float32)
    graph, params, rest = nnx.split(net, nnx.Param, ...)

    @quick_jit
    def step(params, rest):
        def loss(params):
            net = nnx.merge(graph, params, rest, copy=True)
            logits, policy = net(x, jax.random.key(1), train=True)
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(4)).mean()
            return cross_entropy + 0.1 * policy[..., 2].mean(), nnx.split(net, nnx.Param, ...)[2]

        (value, rest), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return value, gradient, jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient), rest

    value, gradient, params, rest = step(params, rest)
    for name in ("fc0", "fc1"):
        assert jnp.abs(gradient["fusion"][name]["kernel"][...]).max() > 0, name
    assert (rest["fusion"]["bn"]["var"][...] != 1).any()
    assert step(params, rest)[0] < value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actions": ("keep", "keep")}, "actions: expected some of"),
        ({"actions": ("kepe", "skip")}, "unknown action 'kepe'"),
        ({"group_size": 3}, "group_size: expected a divisor of the 8 channels, found 3"),
        ({"prior": (0.5, 0.5)}, "prior: expected one share per action"),
    ],
)
def test_what_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        TemporalFusion(IN, CHANNELS, hidden=4, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize("other", [{"hidden": 4}, {"actions": ("reuse", "keep")}, {"group_size": 2}])
def test_sharing_among_different_sizes(other):
    first = make()
    with pytest.raises(UserError, match="share_with: expected a policy of"):
        TemporalFusion(IN, CHANNELS, **({"hidden": 16} | other), share_with=first, rngs=nnx.Rngs(0))


def test_map_of_other_channels_than_the_layer():
    x, y = clip()
    with pytest.raises(UserError, match="one decision for each frame and channel"):
        make()(x, y[..., :1])
