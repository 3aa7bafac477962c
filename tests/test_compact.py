"""A model run compactly gives what it gives dense, and what can't be run so is told in one line."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import filled, quick_jit

from adafuse_jax import create_model
from adafuse_jax.compact import Compact, compacted
from adafuse_jax.errors import UserError
from adafuse_jax.layers import BatchNorm, TemporalFusion

# Every kind of policy, block and shift; odd numbers of channels and pixels are in kernels/test_pair.py.
MODELS = [
    ("adafuse_tsn_tiny", {}),
    ("adafuse_tsn_tiny", {"actions": ("skip", "keep")}),
    ("adafuse_tsn_tiny", {"actions": ("reuse", "keep"), "group_size": 4}),
    ("adafuse_tsn_tiny", {"fusion_stages": (2,), "dtype": "float32"}),
    ("adafuse_tsm_tiny", {}),
    ("adafuse_tsm_tiny", {"shift": "online"}),
    ("adafuse_tsm_last_tiny", {}),
    ("random_tiny", {"shares": (0.35, 0.25, 0.4)}),
]
PUBLISHED = [("adafuse_tsn_r18", {}), ("adafuse_tsm_r50", {}), ("adafuse_tsn_r50", {"stride_in_1x1": True})]
ACTIONS = ("skip", "reuse", "keep")


def clips(shape=(2, 4, 19, 23)):
    return np.random.default_rng(0).standard_normal((*shape, 3)).astype(np.float32)


def made(name, options=None):
    return filled(lambda: create_model(name, num_classes=4, **(options or {})))


def dense(model, clip):
    graph, state = nnx.split(model)
    return quick_jit(lambda s, c: nnx.merge(graph, s)(c))(state, clip)


def assert_same(found, wanted):
    assert list(found.policies) == list(wanted.policies)
    for site, policy in found.policies.items():
        np.testing.assert_array_equal(policy, wanted.policies[site], err_msg=site)
    size = np.abs(wanted.frame_logits).max()
    np.testing.assert_allclose(found.frame_logits, wanted.frame_logits, rtol=0, atol=1e-4 * size)
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=0, atol=1e-4 * size)


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_compact_is_dense(native, name, options):
    model = made(name, options)
    compact = Compact(model)
    assert compact.native
    assert_same(compact(clips()), dense(model, clips()))


@pytest.mark.parametrize(("name", "options"), PUBLISHED)
def test_compact_is_dense_in_the_published_sizes(native, name, options):
    model, random = create_model(name, num_classes=4, **options), np.random.default_rng(0)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, TemporalFusion):  # else all actions are about equally likely
            module.fc0.kernel[...] *= 30
            module.fc1.kernel[...] *= 30
        if isinstance(module, BatchNorm) and module.scale is not None:
            draws = random.uniform(-0.2, 0.2, (4, *module.mean.shape)).astype(np.float32)
            variables = (module.scale, module.bias, module.mean, module.var)
            for variable, draw in zip(variables, draws, strict=True):
                variable[...] += draw
    clip = clips((1, 3, 40, 40))
    wanted = dense(model, clip)
    for policy in wanted.policies.values():
        assert (np.asarray(policy).mean((0, 1, 2)) > 0.02).all()
    assert_same(Compact(model)(clip), wanted)


@pytest.mark.parametrize("action", ACTIONS)
def test_one_action_alone(native, action):
    model = made("adafuse_tsn_tiny")
    for _, block in model.backbone.named_blocks():
        block.fusion.fc1.kernel[...] *= 0
        block.fusion.fc1.bias[...] = jnp.tile(jax.nn.one_hot(ACTIONS.index(action), 3), block.width)
    wanted = dense(model, clips())
    assert all((p[..., ACTIONS.index(action)] == 1).all() for p in wanted.policies.values())
    assert_same(Compact(model)(clips()), wanted)


def test_a_shared_policy_network_is_packed_once(native):
    model = create_model("adafuse_tsn_r18", num_classes=4, share_policy=True)
    before, after = (dict(m.backbone.named_blocks()) for m in (model, compacted(model)))
    first, second = "layer1.0", "layer1.1"
    assert before[first].fusion.fc0 is before[second].fusion.fc0
    weights = [after[site].executed.network.get_value() for site in (first, second)]
    assert weights[0].kernels is weights[1].kernels


def test_weights_may_be_on_the_host(native):
    """As a loaded run's are: blocks don't get each other's, whose sizes are the same."""
    model = made("adafuse_tsn_r18")
    wanted = dense(model, clips((1, 2, 32, 32)))
    nnx.update(model, jax.tree.map(np.asarray, nnx.state(model)))
    assert_same(Compact(model)(jnp.asarray(clips((1, 2, 32, 32)))), wanted)


def test_what_runs_compactly_is_counted_as_before(native):
    for name in ("adafuse_tsm_tiny", "random_tiny"):
        model = made(name)
        assert compacted(model).count((48, 48)) == model.count((48, 48))


def test_a_block_tells_the_next_one_the_averages_of_its_output(native):
    """Unless a shift lies between."""
    for name, from_blocks in (("adafuse_tsn_r50", 15), ("adafuse_tsm_r50", 0)):
        model = compacted(create_model(name, num_classes=4))
        blocks = [block.executed for _, block in model.backbone.named_blocks()]
        assert [block.source for block in blocks if block.source is not None] == blocks[:from_blocks]


def test_threads_may_share_it(native):
    compact, cases = Compact(made("adafuse_tsm_tiny")), [clips() + i for i in range(4)]
    alone = [compact(clip) for clip in cases]
    with ThreadPoolExecutor(4) as pool:
        for i, found in enumerate(pool.map(lambda i: compact(cases[i % 4]), range(16))):
            assert_same(found, alone[i % 4])


def test_the_model_stays_as_it_is(native):
    model = made("adafuse_tsn_tiny")
    before = nnx.split(model)
    Compact(model)
    graph, state = nnx.split(model)
    assert graph == before[0]
    jax.tree.map(np.testing.assert_array_equal, state, before[1])


def test_on_a_tpu_all_is_dense(monkeypatch, caplog):
    model = made("adafuse_tsn_tiny")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert not Compact(model).native and not Compact(model).native
    (record,) = caplog.records
    assert "for the CPU alone, found tpu; everything is computed (dense) instead" in record.getMessage()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tsn_tiny", {}, "expected a model with fusion, found 'tsn_tiny'"),
        ("cgnet_tiny", {}, "expected a model with fusion, found 'cgnet_tiny'"),
        ("threshold_tiny", {}, "expected policies that decide before the map is computed, found Magnitude"),
        ("adafuse_tsn_tiny", {"dtype": "bfloat16"}, "expected a model of float32, found .* of bfloat16"),
        ("adafuse_tsn_b0", {}, "expected a ResNet of the zoo with fusion, found 'adafuse_tsn_b0'"),
        ("adafuse_tsn_inc", {}, "expected a ResNet of the zoo with fusion, found 'adafuse_tsn_inc'"),
        ("arnet_tiny", {}, "expected a ResNet of the zoo with fusion, found 'arnet_tiny'"),
    ],
)
def test_models_that_cannot(name, options, message):
    model = nnx.eval_shape(lambda: create_model(name, num_classes=4, **options))
    with pytest.raises(UserError, match=f"compact execution: {message}"):
        Compact(model)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (np.zeros((1, 2, 8, 8, 4), np.float32), r"clip: expected \(B, T, H, W, 3\), none of them 0"),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), "clip: expected normalised floats, found uint8"),
        (np.zeros((1, 2, 8, 8, 3), jnp.bfloat16), "clip: expected float32 for compact execution, found bf"),
    ],
)
def test_clips_that_cannot(clip, message):
    with pytest.raises(UserError, match=message):
        Compact(made("adafuse_tsn_tiny"))(clip)
