"""Eq. 6 against the published code, and what padding, smoothing and the warm-up of the weight must do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_jax.config import Loss
from adafuse_jax.models.recognizer import Output
from adafuse_jax.models.zoo import create_model
from adafuse_jax.train import losses


def _batch(seed, clips=6, classes=5):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(3 * rng.standard_normal((clips, classes)), jnp.float32)
    return logits, jnp.asarray(rng.integers(0, classes, clips)), jnp.ones(clips)


@pytest.mark.parametrize("kind", ["real", "upb"])
def test_published_losses(golden_units, kind):
    meta, arrays = golden_units
    case = meta[f"loss_{kind}"]
    labels = jnp.asarray(arrays["loss_target"][:, 0])
    accuracy = losses.cross_entropy(jnp.asarray(arrays["loss_logits"]), labels, jnp.ones(len(labels)))
    cost = losses.efficiency(jnp.float32(case[kind]), case["weight"])
    np.testing.assert_allclose(accuracy, case["acc_loss"], rtol=1e-6)
    np.testing.assert_allclose(cost, case["eff_loss"], rtol=1e-6)
    np.testing.assert_allclose(cost, case["gflops_loss"], rtol=1e-6)
    np.testing.assert_allclose(accuracy + cost, case["loss"], rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), padding=st.sampled_from([0, 3]), smoothing=st.sampled_from([0.0, 0.1]))
def test_padding_counts_nowhere(seed, padding, smoothing):
    logits, labels, weights = _batch(seed)
    alone = losses.cross_entropy(logits, labels, weights, smoothing)
    padded = losses.cross_entropy(
        jnp.pad(logits, ((0, padding), (0, 0)), constant_values=jnp.nan),
        jnp.pad(labels, (0, padding), constant_values=-1),
        jnp.pad(weights, (0, padding)),
        smoothing,
    )
    np.testing.assert_allclose(padded, alone, rtol=1e-6)


def test_gradient_of_padding_is_zero():
    logits, labels, weights = _batch(0)
    gradient = jax.grad(losses.cross_entropy)(logits, labels, weights.at[2].set(0.0))
    assert np.all(gradient[2] == 0)
    assert np.all(np.abs(gradient[3]).sum() > 0)


def test_a_batch_of_padding_alone_costs_nothing():
    logits, labels, weights = _batch(0)
    assert losses.cross_entropy(logits, labels, 0 * weights) == 0


def test_uniform_usage_is_the_distance_of_the_shares_from_equal_ones():
    one = jnp.eye(4)
    chosen = one[jnp.array([[[0], [0]], [[1], [0]], [[3], [3]]])]  # three clips of two frames
    found = losses.uniform_usage({"resolution": chosen}, jnp.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(found, np.linalg.norm([0.75 - 0.25, 0.25 - 0.25, -0.25, -0.25]), rtol=1e-6)
    equal = one[jnp.arange(4)].reshape(2, 2, 1, 4)
    assert losses.uniform_usage({"resolution": equal}, jnp.ones(2)) < 1e-5
    gradient = jax.grad(lambda p: losses.uniform_usage({"resolution": p}, jnp.ones(2)))
    assert np.isfinite(gradient(equal)).all()
    # An action taken too often is pushed back, a neglected one drawn.
    pushed = gradient(chosen[:2])
    assert (pushed[..., 0] > 0).all() and (pushed[..., 2] < 0).all()
    assert losses.uniform_usage({}, jnp.ones(2)) == 0


def test_weight_two_is_the_clip_twice():
    logits, labels, weights = _batch(1)
    twice = losses.cross_entropy(*(jnp.concatenate([a, a[:1]]) for a in (logits, labels, weights)))
    np.testing.assert_allclose(losses.cross_entropy(logits, labels, weights.at[0].set(2.0)), twice, rtol=1e-6)


def test_label_smoothing_mixes_the_uniform_target():
    """(1 - s) of the loss against the label + s of the mean loss against every class."""
    logits, labels, weights = _batch(2)
    plain = losses.cross_entropy(logits, labels, weights)
    every = [losses.cross_entropy(logits, jnp.full_like(labels, c), weights) for c in range(5)]
    smooth = losses.cross_entropy(logits, labels, weights, 0.3)
    np.testing.assert_allclose(smooth, 0.7 * plain + 0.3 * np.mean(every), rtol=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
    logits, labels, weights = _batch(3)
    half = logits.astype(jnp.bfloat16)
    same = losses.cross_entropy(half.astype(jnp.float32), labels, weights)
    assert losses.cross_entropy(half, labels, weights) == same


def test_efficiency_of_clips_is_the_weighted_mean():
    gmacs = jnp.asarray([1.0, 2.0, 6.0])
    np.testing.assert_allclose(losses.efficiency(gmacs, 0.5), 1.5, rtol=1e-6)
    np.testing.assert_allclose(losses.efficiency(gmacs, 0.5, jnp.asarray([1.0, 1.0, 0.0])), 0.75, rtol=1e-6)


@pytest.mark.parametrize(
    ("warmup", "step", "share"),
    [
        ((0.0, 0.0), 0, 1.0),
        ((0.3, 0.6), 0, 0.0),
        ((0.3, 0.6), 750, 0.0),
        ((0.3, 0.6), 1125, 0.5),
        ((0.3, 0.6), 1500, 1.0),
        ((0.3, 0.6), 2499, 1.0),
        ((0.5, 0.5), 1249, 0.0),
        ((0.5, 0.5), 1250, 1.0),
        ((0.0, 1.0), 625, 0.25),
    ],
)
def test_flops_weight_warms_up(warmup, step, share):
    traced = jax.jit(lambda s: losses.flops_weight_at(s, 2500, 0.125, warmup))
    np.testing.assert_allclose(losses.flops_weight_at(step, 2500, 0.125, warmup), 0.125 * share, atol=1e-7)
    np.testing.assert_allclose(traced(step), 0.125 * share, atol=1e-7)


def test_parts_are_the_terms_that_model_and_config_have():
    logits, labels, weights = _batch(0)
    policies = {"a": jax.nn.one_hot(jnp.zeros((6, 2, 4), int), 3)}  # always the first of three actions
    out, batch = Output(logits, logits[:, None], policies), {"label": labels, "weight": weights}
    gmacs = jnp.arange(6.0)

    def of(model, **loss):
        model = nnx.eval_shape(lambda: create_model(model)) if model == "tsn_tiny" else create_model(model)
        return losses.parts(model, out, batch, gmacs, jnp.float32(0.5), Loss(**loss))

    found = of("tsn_tiny", label_smoothing=0.1)
    assert found == {
        "cross_entropy": pytest.approx(float(losses.cross_entropy(logits, labels, weights, 0.1))),
        "efficiency": 0.5 * 2.5,
    }
    assert of("tsn_tiny", uniform_weight=3.0)["uniform_usage"] == pytest.approx(3 * (4 / 9 + 2 / 9) ** 0.5)
    # Thresholds start at 0, one for each channel of the gated convolutions.
    assert of("cgnet_tiny", threshold_weight=0.1)["thresholds"] == pytest.approx(0.1 * (16 + 32 + 64))
