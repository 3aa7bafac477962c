"""The Linen layer gives the NNX layer's numbers with the NNX layer's parameters."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import filled, quick_jit

from adafuse_jax import layers
from adafuse_jax.errors import UserError
from adafuse_jax.linen import TemporalFusion

SUBSETS = [("skip", "reuse", "keep"), ("reuse", "keep"), ("skip", "keep")]
IN, CHANNELS, FRAMES, HIDDEN = 5, 8, 4, 16
# actions, group_size, seed of the key, detach_history, train
RULES = [
    (actions, *rest)
    for actions in SUBSETS
    for rest in ((1, None, False, False), (4, 7, False, True), (1, 7, True, False))
]


def clip(seed=0):
    random = np.random.default_rng(seed)
    shapes = (2, FRAMES, 6, 6, IN), (2, FRAMES, 3, 3, CHANNELS)
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


def twins(**options):
    """(an NNX layer with random weights, the Linen layer, its variables with the same values)."""
    ours = filled(lambda: layers.TemporalFusion(IN, CHANNELS, hidden=HIDDEN, rngs=nnx.Rngs(0), **options))
    return ours, TemporalFusion(CHANNELS, hidden=HIDDEN, **options), variables_of(ours)


def variables_of(fusion):
    """An NNX layer's variables as Linen keeps them: copied by their names alone."""
    params, stats = (nnx.to_pure_dict(nnx.state(fusion, kind)) for kind in (nnx.Param, nnx.BatchStat))
    return jax.tree.map(jnp.array, {"params": params, "batch_stats": stats})


@pytest.mark.parametrize(("actions", "group_size"), list(zip(SUBSETS, (1, 4, 2), strict=True)))
def test_same_names_shapes_and_start(actions, group_size):
    x, y = clip()
    options = {"actions": actions, "group_size": group_size, "prior": [1 / len(actions)] * len(actions)}
    ours = layers.TemporalFusion(IN, CHANNELS, hidden=HIDDEN, rngs=nnx.Rngs(0), **options)
    variables = quick_jit(TemporalFusion(CHANNELS, hidden=HIDDEN, **options).init)(jax.random.key(0), x, y)
    wanted = variables_of(ours)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, wanted)
    for name in ("fc0", "fc1"):  # drawn from N(0, 0.001) on both sides; all else starts out equal
        draws = [v["params"][name].pop("kernel") for v in (variables, wanted)]
        assert all(float(np.std(k)) == pytest.approx(0.001, rel=0.25) for k in draws)
    chex.assert_trees_all_equal(variables, wanted)


@pytest.mark.parametrize(("actions", "group_size", "seed", "detach", "train"), RULES)
def test_same_outputs_gradients_and_statistics(actions, group_size, seed, detach, train):
    options = {"actions": actions, "group_size": group_size, "detach_history": detach, "tau": 0.5}
    ours, theirs, variables = twins(**options)
    key = None if seed is None else jax.random.key(seed)
    x, y = clip()
    weights = clip(seed=1)[1]
    graph, params, stats = nnx.split(ours, nnx.Param, ...)

    def loss_nnx(params, x, y):
        fusion = nnx.merge(graph, nnx.State(params), stats, copy=True)
        fused, policy = fusion(x, y, key, train)
        after = nnx.to_pure_dict(nnx.state(fusion, nnx.BatchStat))
        return (fused * weights).sum() + policy[..., -1].sum(), (fused, policy, after)

    def loss_linen(params, x, y):
        variables_now = {"params": params, "batch_stats": variables["batch_stats"]}
        (fused, policy), after = theirs.apply(variables_now, x, y, key, train, mutable=["batch_stats"])
        return (fused * weights).sum() + policy[..., -1].sum(), (fused, policy, after["batch_stats"])

    grads, (fused, policy, after) = quick_jit(jax.grad(loss_nnx, (0, 1, 2), has_aux=True))(params, x, y)
    wanted = (fused, policy, after), (nnx.to_pure_dict(grads[0]), *grads[1:])
    grads, out = quick_jit(jax.grad(loss_linen, (0, 1, 2), has_aux=True))(variables["params"], x, y)
    chex.assert_trees_all_equal(out, wanted[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), grads, wanted[1])
    changed = [bool((a != b).any()) for a, b in zip(*map(jax.tree.leaves, (out[2], stats)), strict=True)]
    assert changed == [train, train]


@pytest.mark.parametrize("actions", SUBSETS)
def test_stream_equals_clip_bit_for_bit(actions):
    _, fusion, variables = twins(actions=actions)
    (x, y), key = clip(), jax.random.key(7)
    fused, policy = jax.jit(fusion.apply)(variables, x, y, key)
    step = jax.jit(lambda *arguments: fusion.apply(variables, *arguments, method="step"))
    carry = fusion.initial_carry(x[:, 0], y[:, 0])
    for t in range(FRAMES):
        carry, out = step(carry, x[:, t], y[:, t], jax.random.fold_in(key, t))
        chex.assert_trees_all_equal(out, (fused[:, t], policy[:, t]))


class Pair(nn.Module):
    """Two sites whose policies share nothing, fc0 and fc1 ("linear"), or all."""

    sharing: str

    @nn.compact
    def __call__(self, x):
        first = second = TemporalFusion(IN, hidden=HIDDEN, name="first")
        if self.sharing != "all":
            shared = first if self.sharing == "linear" else None
            second = TemporalFusion(IN, hidden=HIDDEN, share_with=shared, name="second")
        y, policy = first(x, x)
        z, other_policy = second(y, y + 1)
        return z, policy, other_policy


@pytest.mark.parametrize(
    ("sharing", "wanted"),
    [
        ("nothing", {"first": ["bn", "fc0", "fc1"], "second": ["bn", "fc0", "fc1"]}),
        ("linear", {"first": ["bn", "fc0", "fc1"], "second": ["bn"]}),
        ("all", {"first": ["bn", "fc0", "fc1"]}),
    ],
)
def test_sharing_a_policy_among_sites(sharing, wanted):
    variables = jax.eval_shape(Pair(sharing).init, jax.random.key(0), clip()[0])
    assert {site: sorted(held) for site, held in variables["params"].items()} == wanted
    assert sorted(variables["batch_stats"]) == sorted(wanted)


def test_shared_weights_act_at_both_sites():
    """A fusion that shares another's fc0 and fc1 decides as a fusion that owns equal ones."""
    (x, _), random = clip(), np.random.default_rng(0)
    alone = jax.eval_shape(Pair("nothing").init, jax.random.key(0), x)
    alone = jax.tree.map(lambda v: random.standard_normal(v.shape).astype(np.float32) ** 2, alone)
    first, second = (alone["params"][name] for name in ("first", "second"))
    shared = alone | {"params": {"first": first, "second": {"bn": second["bn"]}}}
    different = quick_jit(Pair("nothing").apply)(alone, x)
    alone["params"]["second"] = first | {"bn": second["bn"]}
    equal = quick_jit(Pair("nothing").apply)(alone, x)
    chex.assert_trees_all_equal(quick_jit(Pair("linear").apply)(shared, x), equal)
    assert (np.asarray(different[2]) != np.asarray(equal[2])).any()


class PlainNet(nn.Module):
    """A user's CNN with the layer between two convolutions."""

    @nn.compact
    def __call__(self, clip, key=None, train=False):
        y = nn.relu(nn.Conv(8, (3, 3), strides=2)(clip))
        fused, policy = TemporalFusion(8, hidden=HIDDEN, name="fusion")(clip, y, key, train)
        return nn.Dense(4)(nn.relu(nn.Conv(16, (3, 3))(fused)).mean((1, 2, 3))), policy


def test_plugs_into_a_plain_net_and_trains():
    net, x = PlainNet(), np.random.default_rng(0).standard_normal((4, 3, 8, 8, 3)).astype(np.float32)
    variables = quick_jit(net.init)(jax.random.key(0), x)

    @quick_jit
    def step(params, stats):
        def loss(params):
            state = {"params": params, "batch_stats": stats}
            (logits, policy), after = net.apply(state, x, jax.random.key(1), True, mutable=["batch_stats"])
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(4)).mean()
            return cross_entropy + 0.1 * policy[..., 2].mean(), after["batch_stats"]

        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return value, gradient, jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient), stats

    value, gradient, params, stats = step(variables["params"], variables["batch_stats"])
    for name in ("fc0", "fc1"):
        assert jnp.abs(gradient["fusion"][name]["kernel"]).max() > 0, name
    assert (stats["fusion"]["bn"]["var"] != 1).any()
    assert step(params, stats)[0] < value


def test_init_leaves_the_running_statistics_at_their_start():
    x, y = clip()
    init = quick_jit(TemporalFusion(CHANNELS, hidden=HIDDEN).init, static_argnums=4)
    stats = init(jax.random.key(0), x, y, jax.random.key(1), True)["batch_stats"]["bn"]
    np.testing.assert_array_equal(stats["mean"], 0)
    np.testing.assert_array_equal(stats["var"], 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actions": ("keep", "keep")}, "actions: expected some of"),
        ({"actions": ("kepe", "skip")}, "unknown action 'kepe'"),
        ({"group_size": 3}, "group_size: expected a divisor of the 8 channels, found 3"),
    ],
)
def test_what_cannot_be_made(options, message):
    with pytest.raises(UserError, match=message):
        TemporalFusion(CHANNELS, **options)


def test_prior_that_is_no_distribution():
    with pytest.raises(UserError, match="prior: expected one share per action"):
        TemporalFusion(CHANNELS, prior=(0.5, 0.5)).init(jax.random.key(0), *clip())


@pytest.mark.parametrize("other", [{"hidden": 4}, {"actions": ("reuse", "keep")}, {"group_size": 2}])
def test_sharing_among_different_sizes(other):
    class Mismatched(nn.Module):
        @nn.compact
        def __call__(self, x, y):
            first = TemporalFusion(CHANNELS, hidden=HIDDEN)
            first(x, y)
            return TemporalFusion(CHANNELS, **({"hidden": HIDDEN} | other), share_with=first)(x, y)

    with pytest.raises(UserError, match="share_with: expected a policy of"):
        Mismatched().init(jax.random.key(0), *clip())
