"""BN-Inception: what the golden case doesn't show of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import filled, inception_sites, quick_jit
from hypothesis import given
from hypothesis import strategies as st

from adafuse_jax import create_model, flops
from adafuse_jax.errors import UserError
from adafuse_jax.models.inception import MODULES, ConvUnit, InceptionModule, check_size
from adafuse_jax.models.sites import PolicyNetworks
from adafuse_jax.ops import pooling
from adafuse_jax.ops.costs import conv_out


def clip(frames=3, side=32):
    return np.random.default_rng(0).standard_normal((2, frames, side, side, 3)).astype(np.float32)


def test_sites_are_the_published_table(golden):
    """Every convolution's MACs at its place, to the last one."""
    meta, _ = golden.load("ada_inc_tsn_224")
    wanted = inception_sites(meta["per_block_flops"], meta["g_meta"])
    frame = nnx.eval_shape(lambda: create_model("adafuse_tsn_inc")).count((224, 224))
    assert list(frame.sites.values()) == wanted
    assert list(frame.sites) == [f"inception_{name}" for name in MODULES]


@pytest.mark.parametrize("stages", [(3,), (4, 5)])
def test_a_site_costs_the_same_wherever_else_there_are_sites(stages):
    some, every = (
        nnx.eval_shape(lambda o=o: create_model("adafuse_tsn_inc", **o)).count((224, 224)).sites
        for o in ({"fusion_stages": stages}, {})
    )
    assert some == {name: site for name, site in every.items() if int(name[-2]) in stages}


def test_a_module_of_stride_2_passes_its_pooled_input_on():
    module = filled(lambda: InceptionModule(8, MODULES["3c"], max_pool=True, dtype=None, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(0).standard_normal((1, 2, 6, 4, 8)).astype(np.float32)
    out, policy = module(x, None, False)
    assert policy is None
    assert out.shape == (1, 2, 3, 2, 160 + 96 + 8)
    np.testing.assert_array_equal(out[0, ..., -8:], pooling.max_pool(jnp.asarray(x[0])))
    assert (out[..., :-8] >= 0).all()
    assert (out[..., -8:] < 0).any()


def test_running_statistics_keep_a_tenth():
    unit = filled(lambda: ConvUnit(3, 5, 3, dtype=None, rngs=nnx.Rngs(0)))
    x = clip()
    mean, var = (np.asarray(s) for s in unit.bn.running)
    seen = np.asarray(unit.conv(x.reshape(-1, 32, 32, 3))).reshape(-1, 5)
    unit(x, True)
    np.testing.assert_allclose(unit.bn.mean[...], 0.1 * mean + 0.9 * seen.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(unit.bn.var[...], 0.1 * var + 0.9 * seen.var(0, ddof=1), rtol=1e-4)


def test_momentum_of_each_norm():
    model = nnx.eval_shape(lambda: create_model("adafuse_tsn_inc"))
    for _, module in model.backbone.named_blocks():
        assert {unit.bn.momentum for unit in module.units.values()} == {0.1}
        assert module.fusion.bn.momentum == 0.9


@given(st.integers(1, 600))
def test_sides_that_fit(side):
    """Those of which, at both modules of stride 2, pool and convolution give as many pixels."""
    size, fits = conv_out(side, 7, 2, 3), True
    for _ in range(2):
        size = pooling.ceil_out(size, 3, 2)
    for _ in range(2):
        fits &= conv_out(size, 3, 2, 1) == pooling.ceil_out(size, 3, 2)
        size = conv_out(size, 3, 2, 1)
    if fits and size > 0:
        check_size((side, 224))
    else:
        with pytest.raises(UserError, match=f"expected sides of 32 n - 1 to 32 n .*, found 224 x {side}"):
            check_size((224, side))


def test_an_image_of_another_size():
    model = nnx.eval_shape(lambda: create_model("tsn_inc"))
    with pytest.raises(UserError, match="image: expected sides of"):
        flops.count(model, {}, image_size=48)
    with pytest.raises(UserError, match="found 48 x 32"):
        nnx.eval_shape(model, jnp.zeros((1, 2, 48, 32, 3)))


def test_training_updates_all_statistics():
    """Traced only: every one of them is another value afterwards."""
    graph, state = nnx.split(nnx.eval_shape(lambda: create_model("adafuse_tsn_inc", num_classes=4)))
    replaced = []

    def train(state):
        model = nnx.merge(graph, state)
        before = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
        model(clip(), jax.random.key(0), train=True)
        after = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
        replaced.extend(new is not old for old, new in zip(before, after, strict=True))

    jax.eval_shape(train, state)
    assert replaced == [True] * 2 * (3 + 8 * 7 + 2 * 5 + 10)  # stem, modules, policies


def test_gradients_reach_all_parameters():
    """Of two modules in a row, through both kinds of pool, the fusions and their policies."""

    def create():
        deciders = PolicyNetworks(hidden=6, rngs=nnx.Rngs(0))
        modules = nnx.List()
        for name, in_features in (("3a", 8), ("3c", 256)):
            modules.append(
                InceptionModule(
                    in_features, MODULES[name], max_pool=name == "3c", dtype=None, rngs=nnx.Rngs(0)
                )
            )
            modules[-1].fusion = deciders(in_features, modules[-1].features)
        return modules

    graph, params, rest = nnx.split(filled(create), nnx.Param, ...)
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4, 8)).astype(np.float32)

    @quick_jit
    @jax.grad
    def gradients(params):
        first, second = nnx.merge(graph, params, rest, copy=True)
        out, _ = first(x, jax.random.key(0), True)
        out, _ = second(out, jax.random.key(1), True)
        return (out**2).mean()

    for path, gradient in nnx.to_flat_state(gradients(params)):
        gradient = np.asarray(gradient[...])
        assert np.isfinite(gradient).all(), path
        # A norm takes away what a bias before it adds.
        if path[-2:] not in (("conv", "bias"), ("fc0", "bias")):
            assert np.abs(gradient).max() > 1e-6, path


def test_bfloat16_computes_near_float32():
    full, half = (
        quick_jit(create_model("tsn_inc", num_classes=4, dtype=dtype).__call__)(clip(2)).logits
        for dtype in (None, "bfloat16")
    )
    assert half.dtype == jnp.float32
    assert np.abs(full - half).max() < 0.05 * np.abs(full).max()
    assert (full != half).any()
