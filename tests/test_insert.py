"""Fusion put into a model that isn't ours is fusion written into it by hand."""

import functools
import threading

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import filled, quick_jit

from adafuse_jax import create_model, flops, insert_fusion, layers, linen
from adafuse_jax.errors import UserError

FRAME, SITES = (8, 8, 3), {"body.0": "body.1"}


class Net(nnx.Module):
    """A user's CNN of frames, with the fusion written in by hand if told so."""

    def __init__(self, rngs: nnx.Rngs, by_hand: bool = False):
        self.body = nnx.List(
            [nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs), nnx.Conv(8, 6, (3, 3), use_bias=False, rngs=rngs)]
        )
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.head = nnx.Linear(6, 4, rngs=rngs)
        self.fusion = nnx.data(layers.TemporalFusion(3, 8, hidden=16, rngs=rngs) if by_hand else None)

    def __call__(self, frames, clips=None, key=None, scale=1.0):
        y, policy = nnx.relu(self.norm(self.body[0](frames))), None
        if self.fusion is not None:
            fused, policy = self.fusion(*(a.reshape(*clips, *a.shape[1:]) for a in (frames, y)), key)
            y = fused.reshape(y.shape)
        out = {"logits": scale * self.head(nnx.relu(self.body[1](y)).mean((1, 2))), "map": y, "loss": y.sum()}
        return out if policy is None else (out, policy)


class LinenNet(nn.Module):
    """The same in Linen, with batch statistics under `train`."""

    by_hand: bool = False

    @nn.compact
    def __call__(self, frames, train=False, clips=None, key=None):
        y = nn.Conv(8, (3, 3), 2, name="first")(frames)
        y, policy = nn.relu(nn.BatchNorm(not train)(y)), None
        if self.by_hand:
            fusion = linen.TemporalFusion(8, hidden=16, name="fusions_first")
            fused, policy = fusion(*(a.reshape(*clips, *a.shape[1:]) for a in (frames, y)), key, train)
            y = fused.reshape(y.shape)
        logits = nn.Dense(4)(nn.relu(nn.Conv(6, (3, 3), name="second")(y)).mean((1, 2)))
        return logits if policy is None else (logits, policy)


def clip(batch=2, frames=4, frame=FRAME, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, frames, *frame)).astype(np.float32)


def net():
    """A `Net` of random weights, drawn without JAX."""
    return filled(lambda: Net(nnx.Rngs(0)))


def insert(model, sites=SITES, **options):
    return insert_fusion(model, sites, FRAME, rngs=nnx.Rngs(1), **({"hidden": 16} | options))


@functools.cache
def fused_linen():
    """(a fused Linen model, its variables: random, large enough that all actions occur)."""
    fused = insert_fusion(LinenNet(), {"first": "second"}, FRAME, hidden=16)
    shapes = jax.eval_shape(fused.init, jax.random.key(0), clip())
    random = np.random.default_rng(0)
    return fused, jax.tree.map(lambda a: np.abs(random.standard_normal(a.shape, np.float32)), shapes) | {
        "params": jax.tree.map(lambda a: random.standard_normal(a.shape, np.float32), shapes["params"])
    }


@pytest.mark.parametrize("seed", [None, 7])
def test_equals_fusion_written_by_hand(seed):
    ours = filled(lambda: Net(nnx.Rngs(0), by_hand=True))
    bare = net()
    fused = insert(bare)
    for name in ("body", "norm", "head"):
        nnx.update(getattr(bare, name), nnx.state(getattr(ours, name)))
    nnx.update(fused.fusions["body.0"], nnx.state(ours.fusion))
    x, key = clip(), None if seed is None else jax.random.key(seed)
    site_key = None if seed is None else jax.random.fold_in(key, 0)
    wanted, policy = quick_jit(lambda x: ours(x.reshape(-1, *FRAME), (2, 4), site_key, scale=3.0))(x)
    out, policies = quick_jit(lambda x: fused(x, key, scale=3.0))(x)
    assert len(np.unique(policy.argmax(-1))) == 3
    np.testing.assert_array_equal(policies["body.0"], policy)
    assert out["logits"].shape == (2, 4, 4)
    np.testing.assert_allclose(out["logits"].reshape(8, 4), wanted["logits"], rtol=1e-5, atol=1e-5)
    # What else reads the map reads it unfused; an output without a frame axis comes as it is.
    y = quick_jit(lambda x: nnx.relu(bare.norm(bare.body[0](x))))(x)
    np.testing.assert_allclose(out["map"], y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out["loss"], y.sum(), rtol=1e-5)


@pytest.mark.parametrize(("seed", "train"), [(None, False), (7, True)])
def test_linen_equals_fusion_written_by_hand(seed, train):
    (fused, variables), x = fused_linen(), clip()
    key = None if seed is None else jax.random.key(seed)
    site_key = None if seed is None else jax.random.fold_in(key, 0)

    def by_hand(tree):
        return {k: v for k, v in tree.items() if k != "model"} | tree["model"]

    hand = {kind: by_hand(tree) for kind, tree in variables.items()}
    run = quick_jit(lambda v: fused.apply(v, x, key, train, mutable=["batch_stats"]))
    (out, policies), after = run(variables)
    net = LinenNet(by_hand=True)
    frames = x.reshape(-1, *FRAME)
    run = quick_jit(lambda v: net.apply(v, frames, train, (2, 4), site_key, mutable=["batch_stats"]))
    (wanted, policy), after_hand = run(hand)
    assert len(np.unique(policy.argmax(-1))) == 3
    np.testing.assert_array_equal(policies["first"], policy)
    np.testing.assert_allclose(out.reshape(8, 4), wanted, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(by_hand(after["batch_stats"]), after_hand["batch_stats"], rtol=1e-5)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), after["batch_stats"], variables["batch_stats"])
    assert set(jax.tree.leaves(changed)) == {train}


class Frames(nnx.Module):
    """A model of ours, of clips of one frame."""

    def __init__(self, net):
        self.net = net

    def __call__(self, frames, train=False):
        features, _ = self.net.backbone(frames[:, None], None, train)
        return self.net.fc(features)[:, 0]


@functools.cache
def tiny():
    """(adafuse_tsn_tiny, tsn_tiny with its weights and fusion inserted)."""
    ours = filled(lambda: create_model("adafuse_tsn_tiny", num_classes=5))
    bare = create_model("tsn_tiny", num_classes=5)
    names = [name for name, _ in ours.backbone.named_blocks()]
    sites = {f"net.backbone.{name}.conv1": f"net.backbone.{name}.conv2" for name in names}
    fused = insert_fusion(Frames(bare), sites, (16, 16, 3), hidden=64, rngs=nnx.Rngs(0))
    fusions = {}
    for first, (_, block) in zip(sites, ours.backbone.named_blocks(), strict=True):
        nnx.update(fused.fusions[first], nnx.state(block.fusion))
        fusions[first], block.fusion = block.fusion, None
    nnx.update(bare, nnx.state(ours))
    for fusion, (_, block) in zip(fusions.values(), ours.backbone.named_blocks(), strict=True):
        block.fusion = fusion
    return ours, fused


def test_gives_and_saves_what_our_own_model_does():
    ours, fused = tiny()
    x, key = clip(frame=(16, 16, 3)), jax.random.key(7)
    wanted = quick_jit(ours)(x, key)
    out, policies = quick_jit(fused)(x, jax.random.split(key)[0])
    np.testing.assert_allclose(out, wanted.frame_logits, rtol=1e-5)
    for policy, ours_policy in zip(policies.values(), wanted.policies.values(), strict=True):
        np.testing.assert_array_equal(policy, ours_policy)
    cost = flops.count(ours, wanted.policies, image_size=16)
    assert (cost.actual < cost.dense).all()
    np.testing.assert_allclose(fused.savings(policies), cost.dense - cost.actual, rtol=1e-6)
    assert list(fused.costs.values()) == list(ours.count((16, 16)).sites.values())


def test_trains_as_our_own_model_does():
    ours, fused = tiny()
    x, key = clip(frame=(16, 16, 3)), jax.random.key(3)

    def after(model, forward):
        graph, state = nnx.split(model)

        def run(state):
            model = nnx.merge(graph, state)
            out = forward(model)
            return out, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

        return quick_jit(run)(state)

    wanted, stats = after(ours, lambda model: model.backbone(x, key, True)[0])
    out, fused_stats = after(fused, lambda model: model(x, key, True)[0])
    np.testing.assert_allclose(out, wanted @ ours.fc.kernel[...] + ours.fc.bias[...], rtol=2e-4, atol=2e-4)
    for name, _ in ours.backbone.named_blocks():
        stage, block = name.split(".")
        block_stats = stats["backbone"][stage][int(block)]
        inside = fused_stats["model"]["net"]["backbone"][stage][int(block)]
        chex.assert_trees_all_close(
            inside | {"fusion": fused_stats["fusions"][f"net.backbone.{name}.conv1"]}, block_stats, rtol=2e-4
        )


def test_all_kept_is_the_bare_model_bit_for_bit():
    bare, x = net(), clip()
    fused = insert(bare, prior=[0, 0, 1], prior_strength=30)
    out, _ = quick_jit(fused)(x)
    wanted = quick_jit(bare)(x.reshape(-1, *FRAME))
    np.testing.assert_array_equal(out["logits"].reshape(8, 4), wanted["logits"])
    np.testing.assert_array_equal(out["loss"], wanted["loss"])

    kept = insert_fusion(LinenNet(), {"first": "second"}, FRAME, hidden=16, actions=["keep"])
    variables = quick_jit(kept.init)(jax.random.key(0), x)
    bare = {kind: tree["model"] for kind, tree in variables.items()}
    wanted = quick_jit(LinenNet().apply)(bare, x.reshape(-1, *FRAME))
    np.testing.assert_array_equal(quick_jit(kept.apply)(variables, x)[0].reshape(8, 4), wanted)


def check_training(step, params, rest, policies_of):
    """One step's gradient reaches the policies through logits and savings; the second step is better."""
    value, gradient, params, after = step(params, rest)
    for name in ("fc0", "fc1"):
        assert jnp.abs(policies_of(gradient)[name]["kernel"][...]).max() > 0, name
    assert (policies_of(after)["bn"]["var"][...] != 1).any()
    assert step(params, after)[0] < value


def loss_of(fused, logits, policies):
    labels = jnp.arange(4)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits.mean(1), labels).mean()
    return cross_entropy - 1e-6 * fused.savings(policies).mean()


def test_trains():
    graph, params, rest = nnx.split(insert(net()), nnx.Param, ...)

    @quick_jit
    def step(params, rest):
        def loss(params):
            fused = nnx.merge(graph, params, rest, copy=True)
            out, policies = fused(clip(4), jax.random.key(1), train=True)
            return loss_of(fused, out["logits"], policies), nnx.split(fused, nnx.Param, ...)[2]

        (value, rest_now), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return value, gradient, jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient), rest_now

    check_training(step, params, rest, lambda tree: tree["fusions"]["body.0"])


def test_trains_in_linen():
    fused = insert_fusion(LinenNet(), {"first": "second"}, FRAME, hidden=16)
    variables = quick_jit(fused.init)(jax.random.key(0), clip(4))
    assert set(variables["params"]) == {"model", "fusions_first"}

    @quick_jit
    def step(params, stats):
        def loss(params):
            state = {"params": params, "batch_stats": stats}
            out, after = fused.apply(state, clip(4), jax.random.key(1), True, mutable=["batch_stats"])
            return loss_of(fused, *out), after["batch_stats"]

        (value, stats_now), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return value, gradient, jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient), stats_now

    check_training(step, variables["params"], variables["batch_stats"], lambda tree: tree["fusions_first"])


class Chain(nnx.Module):
    """Convolutions one after another, by an order to choose: any may run twice or never."""

    def __init__(self, order="abc", remat=False):
        for name in "abc":
            setattr(self, name, nnx.Conv(3, 3, (1, 1), rngs=nnx.Rngs(0)))
        self.alias = self.a
        self.order, self.remat = order, remat

    def __call__(self, x):
        if self.remat:
            return nnx.remat(lambda self, x: self.b(self.a(x)))(self, x)
        for name in self.order:
            x = getattr(self, name)(x)
        return x


def test_a_module_may_end_one_site_and_begin_the_next():
    """The second policy sees the fused map, for that is what the module reads."""
    fused = insert(filled(Chain), {"a": "b", "b": "c"})
    for seed, fusion in enumerate(fused.fusions.values()):
        nnx.update(
            fusion, nnx.state(filled(lambda: layers.TemporalFusion(3, 3, hidden=16, rngs=nnx.Rngs(0)), seed))
        )
    x = clip()
    out, policies = quick_jit(fused)(x)
    model, fusions = fused.model, fused.fusions

    @quick_jit
    def by_hand(x):
        at_b, first = fusions["a"](x, model.a(x))
        at_c, second = fusions["b"](at_b, model.b(at_b))
        return model.c(at_c), {"a": first, "b": second}

    wanted, wanted_policies = by_hand(x)
    chex.assert_trees_all_equal(dict(policies), wanted_policies)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)


def test_the_model_stays_as_it_is():
    net = filled(Chain)
    for sites in ({"a": "b"}, {"b": "c"}):  # of two fused models
        fused = insert(net, sites)
        assert fused.model is net
        jax.eval_shape(functools.partial(fused), clip())
        assert {type(m) for m in (net.a, net.b, net.c)} == {nnx.Conv}
    net.order = "aba"
    for _ in range(2):
        with pytest.raises(UserError, match=r"expected one call in a forward pass, found (none|two)"):
            jax.eval_shape(functools.partial(fused), clip())
        assert {type(m) for m in (net.a, net.b, net.c)} == {nnx.Conv}
    assert nnx.state(fused, nnx.Param)["model"].keys() == nnx.state(net, nnx.Param).keys()


def test_threads_leave_each_other_alone():
    """While a fused model runs, another thread calls its modules bare, and a third the fused model."""
    net, results = filled(Chain), {}

    class Busy(nnx.Module):
        def __init__(self):
            self.net = net

        def __call__(self, x):
            x = self.net.a(x)
            if threading.current_thread() is threading.main_thread() and not isinstance(x, jax.core.Tracer):
                start("fused", lambda: fused(clip())[0])
                start("bare", lambda: net.a(clip())).join()
            return self.net.b(x)

    threads = []

    def start(name, function):
        threads.append(threading.Thread(target=lambda: results.update({name: function()})))
        threads[-1].start()
        return threads[-1]

    fused = insert(Busy(), {"net.a": "net.b"})
    out, _ = fused(clip())
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(results["fused"], out)
    np.testing.assert_array_equal(results["bare"], net.a(clip()))


class LinenChain(nn.Module):
    """`Chain` in Linen."""

    order: str = "abc"
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        modules = {name: nn.Conv(3, (1, 1), name=name) for name in "abc"}
        if self.remat:
            return nn.remat(lambda self, x: modules["b"](modules["a"](x)))(self, x)
        for name in self.order:
            x = modules[name](x)
        return x


@pytest.mark.parametrize("chain", [Chain, LinenChain])
@pytest.mark.parametrize(
    ("made", "sites", "message"),
    [
        ({}, {"a": "bb"}, r"unknown module 'bb' \(did you mean 'b'\?\); known: a, "),
        ({}, {"x.y": "b"}, "unknown module 'x.y'; known: a, "),
        ({"order": "abca"}, {"a": "b"}, "'a': expected one call in a forward pass, found two"),
        ({"order": "abcb"}, {"a": "b"}, "'b': expected one call in a forward pass, found two"),
        ({"order": "bac"}, {"a": "b"}, "'b': expected to run after 'a', found before or without it"),
        (
            {"remat": True},
            {"a": "b"},
            "'a': expected (outside of the model's own|one call in a forward pass, found none)",
        ),
        ({}, {"a": "a"}, "sites: expected another second module for 'a' than 'a'"),
        ({}, {"a": "c", "b": "c"}, "sites: expected another second module for 'a' than 'c'"),
        ({}, {}, r"sites: expected \{first module: second module\}, found \{\}"),
        ({}, ["a"], r"sites: expected \{first module: second module\}, found \['a'\]"),
    ],
)
def test_what_cannot_be_inserted(chain, made, sites, message):
    with pytest.raises(UserError, match=message):
        insert(chain(**made), sites)


@pytest.mark.parametrize(
    ("sites", "options", "message"),
    [
        ({"a": "b", "alias": "c"}, {}, "expected one path a module, found 'a' and 'alias'"),
        ({"a": "b"}, {"hiden": 3}, r"unknown option of TemporalFusion 'hiden' \(did you mean 'hidden'\?\)"),
        ({"a": "b"}, {"actions": ["kepe"]}, "unknown action 'kepe'"),
        ({"a": "b"}, {"group_size": 2}, "group_size: expected a divisor of the 3 channels, found 2"),
    ],
)
def test_options_and_paths_that_cannot_be(sites, options, message):
    with pytest.raises(UserError, match=message):
        insert(Chain(), sites, **options)


def test_a_second_module_that_never_runs():
    with pytest.raises(UserError, match="'c': expected one call in a forward pass, found none"):
        insert(Chain("ab"), {"a": "c"})


def test_models_and_maps_that_cannot_be():
    with pytest.raises(UserError, match="model: expected a module of Flax NNX or Linen, found function"):
        insert(lambda x: x)
    with pytest.raises(UserError, match=r"rngs: expected nnx\.Rngs"):
        insert_fusion(Chain(), {"a": "b"}, FRAME)

    class Doubling(Chain):
        def __call__(self, x):
            y = self.a(x)
            return self.c(jnp.concatenate([y, y], -1))

    wide = Doubling()
    wide.c = nnx.Conv(6, 3, (1, 1), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="'c': expected to read the channels that 'a' gives, found"):
        insert(wide, {"a": "c"})

    class Clips(Chain):
        def __call__(self, x):
            return self.b(self.a(x[None]))

    with pytest.raises(UserError, match="'a': expected 2 frames as first argument, found an array"):
        insert(Clips(), {"a": "b"})

    class ByName(Chain):
        def __call__(self, x):
            return self.b(self.a(inputs=x))

    with pytest.raises(UserError, match="'a': expected 2 frames as first argument, found none"):
        insert(ByName(), {"a": "b"})


@pytest.mark.parametrize("shape", [(8, 8, 8, 3), (2, 4, 8, 8, 1), (2, 0, 8, 8, 3)])
def test_clips_that_cannot_be(shape):
    with pytest.raises(UserError, match=r"clip: expected \(B, T, H, W, 3\)"):
        insert(Chain(), {"a": "b"})(jnp.zeros(shape))


def test_savings_of_what_has_no_known_cost():
    class Pooled(Chain):
        def __init__(self):
            super().__init__()
            self.b = nnx.BatchNorm(3, use_running_average=True, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.b(self.a(x))

    fused = insert(Pooled(), {"a": "b"})
    _, policies = fused(clip())
    with pytest.raises(UserError, match="'b': expected a convolution or linear layer, to count its MACs"):
        fused.savings(policies)
    with pytest.raises(UserError, match=r"policies: expected \['a'\], found \['b'\]"):
        fused.savings({"b": policies["a"]})


def test_in_a_published_model():
    """ResNet-18 of flaxmodels 0.1.3, if it is there: not among the requirements."""
    models = pytest.importorskip("flaxmodels")
    net = models.ResNet18(output="logits", pretrained=None, num_classes=5)
    sites = {f"BasicBlock_{i}.Conv_0": f"BasicBlock_{i}.Conv_1" for i in range(8)}
    fused = insert_fusion(net, sites, (32, 32, 3), hidden=16, prior=(0, 0, 1), prior_strength=30)
    x = clip(1, 2, (32, 32, 3))
    variables = quick_jit(fused.init)(jax.random.key(0), x)
    out, policies = quick_jit(functools.partial(fused.apply, train=False))(variables, x)
    bare = quick_jit(functools.partial(net.apply, train=False))
    wanted = bare({kind: tree["model"] for kind, tree in variables.items()}, x[0])
    np.testing.assert_allclose(out[0], wanted, rtol=1e-4, atol=1e-4)
    assert [p.shape for p in policies.values()] == [
        (1, 2, c, 3) for c in (64, 64, 128, 128, 256, 256, 512, 512)
    ]
    np.testing.assert_array_equal(fused.savings(policies), 0)
