"""The published optimiser: groups, PyTorch's SGD restated in numpy, and the learning-rate table."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from adafuse_jax import config as cfg
from adafuse_jax.errors import UserError
from adafuse_jax.models.lstm import LSTM
from adafuse_jax.train import optim

PUBLISHED = cfg.Optimizer()
STEPS_PER_EPOCH = 7
TOTAL = 50 * STEPS_PER_EPOCH


def _params(seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return {
        "layer1": {
            0: {"conv1": {"kernel": normal(3, 3, 2, 4)}, "bn1": {"scale": normal(4), "bias": normal(4)}}
        },
        "fc": {"kernel": normal(4, 5), "bias": normal(5)},
    }


def _gradients(step):
    """Large at every third step, so that clipping acts at some and not at others."""
    return jax.tree.map(lambda p: p * (0.1 if step % 3 else 10.0), _params(1000 + step))


def _torch_sgd(params, gradients, rates, config):
    """PyTorch's clip_grad_norm_ and SGD over the published groups, in float64."""
    flat, tree = jax.tree.flatten(params)
    flat = [np.asarray(p, np.float64) for p in flat]
    group = jax.tree.leaves(optim.groups(params))
    momentum = [np.zeros_like(p) for p in flat]
    clipped = []
    for g, rate in zip(gradients, rates, strict=True):
        g = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(g)]
        norm = math.sqrt(sum((leaf**2).sum() for leaf in g))
        scale = min(1.0, config.clip_norm / (norm + 1e-6))
        clipped.append(scale < 1)
        for i, name in enumerate(group):
            step = scale * g[i]
            if name == "weight":
                step = step + config.weight_decay * flat[i]
            momentum[i] = config.momentum * momentum[i] + step
            flat[i] = flat[i] - rate * (config.bias_lr_multiplier if name == "bias" else 1) * momentum[i]
    return jax.tree.unflatten(tree, flat), clipped


def _run(config, steps, steps_per_epoch, total_steps):
    params = _params()
    optimizer = optim.make_optimizer(config, params, steps_per_epoch, total_steps)
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(steps):
        params, state = update(params, state, _gradients(step))
    return params


def test_groups_by_place():
    assert optim.groups(_params()) == {
        "layer1": {0: {"conv1": {"kernel": "weight"}, "bn1": {"scale": "norm", "bias": "norm"}}},
        "fc": {"kernel": "weight", "bias": "bias"},
    }
    assert optim.group_of(("layer1", 0, "bn1", "bias"), _params()) == "norm"


def test_both_biases_of_an_lstm_are_biases():
    """As in the published code: of an LSTMCell, bias_ih and bias_hh learn twice as fast and don't decay."""
    lstm = LSTM(3, 2, rngs=nnx.Rngs(0))
    found = optim.groups(nnx.to_pure_dict(nnx.state(lstm, nnx.Param)))
    assert found == {"kernel_x": "weight", "kernel_h": "weight", "bias_x": "bias", "bias_h": "bias"}


@pytest.mark.parametrize("clip_norm", [20.0, 0.01])
def test_sgd_is_pytorchs_across_a_change_of_the_rate(clip_norm):
    config = dataclasses.replace(
        PUBLISHED, clip_norm=clip_norm, weight_decay=0.1, decay_epochs=(2.0,), learning_rate=0.05
    )
    expected, clipped = _torch_sgd(
        _params(), [_gradients(s) for s in range(9)], [0.05] * 4 + [0.005] * 5, config
    )
    assert any(clipped) and (all(clipped) or clip_norm == 20.0)
    found = _run(config, 9, 2, 100)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), found, expected)


def test_clipping_is_pytorchs_where_optax_differs():
    """For norm 2e-3, limit 1e-3: PyTorch's scale is 0.49975, not 0.5."""
    clip = optim.clip_by_global_norm(1e-3)
    clipped, _ = clip.update({"a": jnp.asarray([2e-3])}, clip.init({}))
    np.testing.assert_allclose(clipped["a"], 2e-3 * 1e-3 / (2e-3 + 1e-6), rtol=1e-6)


def test_clip_norm_zero_is_off():
    config = dataclasses.replace(PUBLISHED, clip_norm=0.0)
    unclipped = _run(dataclasses.replace(PUBLISHED, clip_norm=1e9), 4, STEPS_PER_EPOCH, TOTAL)
    found = _run(config, 4, STEPS_PER_EPOCH, TOTAL)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, unclipped)


def test_published_learning_rates(golden_units):
    """All steps of an epoch take its row: rate and decay of weights, rate and decay of biases."""
    rows = golden_units[0]["lr"]["rows"]
    rate = optim.schedule(PUBLISHED, STEPS_PER_EPOCH, TOTAL)
    found = [
        [float(rate(e * STEPS_PER_EPOCH + i)) for i in (0, STEPS_PER_EPOCH - 1)] for e in range(len(rows))
    ]
    np.testing.assert_allclose(found, [[row[0]] * 2 for row in rows], rtol=1e-6)
    assert {row[1] for row in rows} == {PUBLISHED.weight_decay}
    np.testing.assert_allclose([row[2] / row[0] for row in rows], PUBLISHED.bias_lr_multiplier)
    assert {row[3] for row in rows} == {0.0}  # biases without decay: test_sgd_is_pytorchs...


def test_cosine_meets_the_published_rate_at_each_epoch():
    rate = optim.schedule(dataclasses.replace(PUBLISHED, schedule="cosine"), STEPS_PER_EPOCH, TOTAL)
    published = [0.5 * 0.02 * (1 + math.cos(math.pi * epoch / 50)) for epoch in range(51)]
    np.testing.assert_allclose([rate(e * STEPS_PER_EPOCH) for e in range(51)], published, atol=1e-8)
    assert rate(0) > rate(1) > rate(STEPS_PER_EPOCH)


@pytest.mark.parametrize("name", ["step", "cosine"])
def test_warmup_rises_to_the_rate_and_leaves_the_rest(name):
    config = dataclasses.replace(PUBLISHED, schedule=name, warmup_epochs=2.0)
    rate = jax.jit(optim.schedule(config, STEPS_PER_EPOCH, TOTAL))
    np.testing.assert_allclose([rate(s) for s in (0, 7, 14)], [0, 0.01, 0.02], rtol=1e-6)
    if name == "step":  # decay epochs are counted from the start of the run
        plain = optim.schedule(PUBLISHED, STEPS_PER_EPOCH, TOTAL)
        steps = [14, 139, 140, 279, 280, 349]
        np.testing.assert_allclose([rate(s) for s in steps], [plain(s) for s in steps], rtol=1e-6)
    else:
        np.testing.assert_allclose(rate(TOTAL), 0, atol=1e-9)


def test_decay_epochs_in_one_step_both_count():
    config = dataclasses.replace(PUBLISHED, decay_epochs=(1.0, 1.1))
    np.testing.assert_allclose(optim.schedule(config, 2, 10)(2), 0.02 * 0.01, rtol=1e-6)


def test_warmup_of_the_whole_run_is_an_error():
    with pytest.raises(UserError, match="warmup_epochs: expected less than the run's 3 epochs, found 3"):
        optim.schedule(dataclasses.replace(PUBLISHED, warmup_epochs=3.0), 4, 12)


def test_adamw_is_optaxs_in_each_group():
    config = cfg.Optimizer(name="adamw", learning_rate=0.01, weight_decay=0.2, clip_norm=0.0, decay_epochs=())
    found = _run(config, 5, STEPS_PER_EPOCH, TOTAL)
    names = optim.groups(_params())
    for group, rate, decay in (("weight", 0.01, 0.2), ("bias", 0.02, 0.0), ("norm", 0.01, 0.0)):
        params, plain = _params(), optax.adamw(rate, weight_decay=decay)
        state = plain.init(params)
        for step in range(5):
            updates, state = plain.update(_gradients(step), state, params)
            params = optax.apply_updates(params, updates)
        for name, a, b in zip(*map(jax.tree.leaves, (names, found, params)), strict=True):
            if name == group:
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("field", ["name", "schedule"])
def test_unknown_choices_list_the_known(field):
    with pytest.raises(UserError, match=f"unknown value of config.optimizer.{field} 'other'; known:"):
        optim.make_optimizer(dataclasses.replace(PUBLISHED, **{field: "other"}), _params(), 2, 10)
