"""A stream gives, frame by frame, what the clip model gives for the frames so far."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import filled, quick_jit

from adafuse_jax import create_model
from adafuse_jax.errors import UserError
from adafuse_jax.layers import TemporalFusion
from adafuse_jax.streaming import Stream

# Every way to remember, and every backbone.
MODELS = [
    ("adafuse_tsn_tiny", {}),
    ("adafuse_tsn_tiny", {"actions": ("reuse", "keep"), "group_size": 4}),
    ("adafuse_tsn_tiny", {"shift": "online"}),
    ("tsn_tiny", {"shift": "online"}),
    ("adafuse_tsm_last_tiny", {"shift": "online"}),
    ("lstm_tiny", {"lstm_hidden": 8}),
    ("threshold_tiny", {}),
    ("cgnet_tiny", {}),
]

COMPACT = ["adafuse_tsn_r18", "adafuse_tsn_r50"]


def frames(seed=0, size=16):
    return np.random.default_rng(seed).standard_normal((2, 5, size, size, 3)).astype(np.float32)


def made(name, options):
    return filled(lambda: create_model(name, num_classes=4, **options))


def assert_a_stream_is_the_clip(model, clip, execution="dense"):
    graph, state = nnx.split(model)
    whole = quick_jit(lambda s, c: nnx.merge(graph, s)(c))(state, clip)
    stream = Stream(model, execution)
    assert stream.execution == execution
    now, size = stream.init(len(clip), clip.shape[2]), np.abs(whole.frame_logits).max()
    for t in range(clip.shape[1]):
        now, out = stream(now, clip[:, t])
        np.testing.assert_allclose(out.frame_logits, whole.frame_logits[:, t], rtol=0, atol=1e-5 * size)
        mean = np.asarray(whole.frame_logits[:, : t + 1]).mean(1)
        np.testing.assert_allclose(out.logits, mean, rtol=0, atol=1e-5 * size)
        assert list(out.policies) == list(whole.policies)
        for site, policy in out.policies.items():
            np.testing.assert_allclose(policy, whole.policies[site][:, t], rtol=0, atol=1e-6, err_msg=site)


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_a_stream_is_the_clip(name, options):
    assert_a_stream_is_the_clip(made(name, options), frames())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adafuse_tsn_tiny", {}),
        ("adafuse_tsn_tiny", {"actions": ("reuse", "keep"), "group_size": 4, "fusion_stages": (2,)}),
        ("adafuse_tsm_last_tiny", {"shift": "online"}),
    ],
)
def test_a_compact_stream_is_the_clip(native, name, options):
    assert_a_stream_is_the_clip(made(name, options), frames(), "compact")


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["dense", "compact"])
@pytest.mark.parametrize("name", ["adafuse_tsn_r18", "adafuse_tsn_r50", "adafuse_tsn_inc", "adafuse_tsn_b0"])
def test_a_stream_of_the_published_sizes_is_the_clip(name, execution):
    if execution == "compact" and name not in COMPACT:
        pytest.skip(f"{name} isn't run compactly")
    model = create_model(name, num_classes=4)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, TemporalFusion):  # else all actions are about equally likely
            module.fc0.kernel[...] *= 100
            module.fc1.kernel[...] *= 100
    assert_a_stream_is_the_clip(model, frames(size=64)[:1, :3], execution)


@pytest.mark.parametrize("execution", ["dense", "compact"])
def test_streams_start_anew_each_for_itself(request, execution):
    if execution == "compact":
        request.getfixturevalue("native")
    stream = Stream(made("adafuse_tsn_tiny", {"shift": "online"}), execution)
    clip, other = frames(), frames(1)
    state = stream.init(2, 16)
    for t in range(3):
        state, _ = stream(state, clip[:, t])
    state = stream.reset(state, jnp.array([True, False]))
    fresh = stream.init(2, 16)
    for t in range(2):
        frame = np.stack([other[0, t], clip[1, 3 + t]])
        state, out = stream(state, frame)
        fresh, wanted = stream(fresh, other[:, t])
        np.testing.assert_array_equal(out.logits[0], wanted.logits[0])
    np.testing.assert_array_equal(state.frames, [2, 5])


@pytest.mark.parametrize("execution", ["dense", "compact"])
def test_memory_is_constant_and_nothing_compiles_twice(request, execution):
    if execution == "compact":
        request.getfixturevalue("native")
    stream, clip = Stream(made("adafuse_tsn_tiny", {}), execution), frames()
    state = first = stream.init(2, 16)
    for t in range(5):
        state, _ = stream(state, clip[:, t])
        assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, first)
    assert stream._jitted._cache_size() == 1


def test_the_model_stays_as_it_is():
    model = made("adafuse_tsn_tiny", {"shift": "online"})
    before = nnx.split(model)
    Stream(model)
    graph, state = nnx.split(model)
    assert graph == before[0]
    jax.tree.map(np.testing.assert_array_equal, state, before[1])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adafuse_tsm_tiny", "expected a model that looks back alone, found 'adafuse_tsm_tiny', whose shift"),
        ("trn_tiny", "expected a model that classifies every frame, found 'trn_tiny'"),
        ("arnet_tiny", "expected a model that classifies every frame, found 'arnet_tiny'"),
        ("random_tiny", "expected policies that depend on the frames, found 'random_tiny'"),
    ],
)
def test_models_that_cannot_stream(name, message):
    with pytest.raises(UserError, match=message):
        Stream(create_model(name, num_classes=4))


def test_executions():
    with pytest.raises(UserError, match=r"unknown execution 'compct' \(did you mean 'compact'"):
        Stream(made("adafuse_tsn_tiny", {}), "compct")
    with pytest.raises(UserError, match="compact execution: expected a model with fusion, found 'tsn_tiny'"):
        Stream(made("tsn_tiny", {}), "compact")


def test_where_native_code_cannot_run_a_stream_is_dense(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert Stream(made("adafuse_tsn_tiny", {}), "compact").execution == "dense"


def test_a_frame_of_another_shape():
    stream = Stream(made("tsn_tiny", {}))
    with pytest.raises(UserError, match=r"frame: expected \(2, H, W, 3\), found \(3, 16, 16, 3\)"):
        stream(stream.init(2, 16), np.zeros((3, 16, 16, 3), np.float32))
