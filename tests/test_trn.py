"""The baseline TRN: its sum over relations, what it draws, what it counts."""

import functools
import itertools

import chex
import jax
import numpy as np
import pytest
from flax import nnx
from helpers import filled, quick_jit

from adafuse_jax import create_model, flops
from adafuse_jax.config import Config
from adafuse_jax.errors import UserError
from adafuse_jax.models.trn import Relations
from adafuse_jax.train.run import make_model
from adafuse_jax.weights import from_torch, to_torch

CLASSES, FRAMES = 4, 5


@functools.cache
def tiny():
    return filled(lambda: create_model("trn_tiny", num_classes=CLASSES, num_frames=FRAMES))


def clip(seed=0, frames=FRAMES):
    return np.random.default_rng(seed).standard_normal((2, frames, 16, 16, 3)).astype(np.float32)


def relation_of(module, tuple_of_frames):
    """W2 ReLU(W1 ReLU(x) + b1) + b2 in float64."""
    i = FRAMES - tuple_of_frames.shape[1]
    w0, b0, w1, b1 = (
        np.asarray(v[...], np.float64) for fc in (module.fc0[i], module.fc1[i]) for v in (fc.kernel, fc.bias)
    )
    x = np.maximum(tuple_of_frames.reshape(len(tuple_of_frames), -1), 0)
    return np.maximum(x @ w0 + b0, 0) @ w1 + b1


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_the_logits_are_the_sum_of_the_relations(seed):
    module = filled(lambda: Relations(3, FRAMES, CLASSES, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(0).standard_normal((2, FRAMES, 3)).astype(np.float32)
    key = None if seed is None else jax.random.key(seed)
    wanted = 0
    for scale in range(2, FRAMES + 1):
        for frames in module.chosen(scale, None if key is None else jax.random.fold_in(key, scale)):
            wanted = wanted + relation_of(module, x[:, frames])
    np.testing.assert_allclose(module(x, key), wanted, rtol=1e-4)


def test_without_a_key_the_tuples_lie_evenly():
    module = nnx.eval_shape(lambda: Relations(3, 8, CLASSES, rngs=nnx.Rngs(0)))
    assert module.scales == (8, 7, 6, 5, 4, 3, 2)
    for scale in module.scales:
        every = list(itertools.combinations(range(8), scale))
        found = [every.index(tuple(map(int, frames))) for frames in module.chosen(scale)]
        assert found == ([0] if scale == 8 else [int(len(every) * part) for part in (1 / 6, 3 / 6, 5 / 6)])


def test_a_key_draws_three_ordered_tuples_each_as_often_as_any():
    module = nnx.eval_shape(lambda: Relations(3, FRAMES, CLASSES, rngs=nnx.Rngs(0)))
    draws = np.asarray(jax.vmap(lambda k: module.chosen(3, k))(jax.random.split(jax.random.key(0), 500)))
    assert draws.shape == (500, 3, 3)
    assert (np.diff(draws) > 0).all()
    for three in draws[:50]:
        assert len({tuple(frames) for frames in three}) == 3
    _, counts = np.unique(draws.reshape(-1, 3), axis=0, return_counts=True)
    assert len(counts) == 10  # each with 500 * 3 / 10, 5 standard deviations about 51
    assert np.abs(counts - 150).max() < 51


def test_what_a_model_says():
    model, x = tiny(), clip()
    run = quick_jit(model.__call__)
    out = run(x)
    np.testing.assert_array_equal(out.frame_logits, np.repeat(out.logits[:, None], FRAMES, 1))
    features, _ = quick_jit(lambda c: model.backbone(c))(x)
    size = np.abs(out.logits).max()
    wanted = model.relations(model.fc(features))
    np.testing.assert_allclose(out.logits, wanted, rtol=0, atol=1e-5 * size)
    assert not out.policies
    # Time's order matters, and without a key nothing is drawn.
    assert np.abs(out.logits - run(x[:, ::-1]).logits).max() > 1e-2 * size
    np.testing.assert_array_equal(out.logits, run(x).logits)
    first, again, other = (run(x, jax.random.key(seed)).logits for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2 * size


def test_clips_of_another_length():
    with pytest.raises(UserError, match="clip: expected 5 frames, the model's num_frames, found 3"):
        tiny()(clip(frames=3))
    with pytest.raises(UserError, match="num_frames: expected at least 2, found 1"):
        create_model("trn_tiny", num_frames=1)


def test_a_config_s_clips_have_the_length_that_its_model_reads():
    for options, wanted in (({}, 3), ({"num_frames": 5}, 5)):
        config = Config.from_dict({"model": {"name": "trn_tiny"} | options, "data": {"num_frames": 3}})
        assert nnx.eval_shape(lambda config=config: make_model(config)).relations.num_frames == wanted


@pytest.mark.parametrize("classes", [27, 174])
def test_parameters_and_cost(classes):
    """Beside the backbone: a linear layer to 256, and per scale s linear layers s * 256 -> 256 -> classes."""
    trn, tsn = (
        nnx.eval_shape(lambda name=name: create_model(name, num_classes=classes))
        for name in ("trn_r50", "tsn_r50")
    )
    parameters = [sum(a.size for a in jax.tree.leaves(nnx.state(m, nnx.Param))) for m in (trn, tsn)]
    extra = 2049 * -classes + 2049 * 256
    macs = 8 * 2 * 2048 * (256 - classes)
    for scale in range(2, 9):
        extra += scale * 256 * 256 + 256 + 256 * classes + classes
        macs += (1 if scale == 8 else 3) * 2 * (scale * 256 * 256 + 256 * classes)
    assert parameters[0] - parameters[1] == extra
    assert flops.count(trn, {}).dense - flops.count(tsn, {}).dense == macs


def test_a_published_state_dict():
    source = filled(lambda: create_model("trn_tiny", num_classes=CLASSES, num_frames=FRAMES), seed=1)
    given = to_torch(source)
    assert given["new_fc.weight"].shape == (256, 64)
    assert given["consensus.fc_fusion_scales.0.1.weight"].shape == (256, FRAMES * 256)
    assert given["consensus.fc_fusion_scales.3.3.bias"].shape == (CLASSES,)
    model = filled(lambda: create_model("trn_tiny", num_classes=CLASSES, num_frames=FRAMES))
    from_torch(model, {"module." + key: value for key, value in given.items()})
    chex.assert_trees_all_equal(nnx.state(model), nnx.state(source))
