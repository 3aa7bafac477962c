"""The step: alike on any number of devices, each term of Eq. 6 where it belongs, the state's lifetime."""

import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adafuse_jax import flops
from adafuse_jax.config import Config, Data
from adafuse_jax.errors import UserError
from adafuse_jax.train import mesh, run
from adafuse_jax.train import state as states
from adafuse_jax.train.optim import make_optimizer
from adafuse_jax.train.step import make_eval_step, make_train_step, normalize

CLIPS, FRAMES, SIZE, CLASSES, TOTAL = 8, 2, 16, 12, 8
LEARNING_RATE = 0.05
KEY = jax.random.key(0)
FUSED = {"name": "adafuse_tsn_tiny", "fusion_stages": (3,), "prior": (0.2, 0.3, 0.5), "dropout": 0.5}
# A frame of 16 x 16 pixels costs 0.0009 GMACs: the efficiency term outweighs the other 300 times.
EFFICIENCY = {"flops_weight": 1e6, "flops_warmup": (0.25, 0.75)}
FULL = 6  # the first step of the full weight, of TOTAL
SITE = ("backbone", "layer3", 0, "fusion")


def config(model=FUSED, loss=EFFICIENCY, **train):
    return Config.from_dict(
        {
            "model": model,
            "data": {"num_classes": CLASSES, "num_frames": FRAMES, "image_size": SIZE, "resize": SIZE},
            "optimizer": {"learning_rate": LEARNING_RATE, "clip_norm": 0.0},
            "loss": loss,
            "train": {"batch_size": CLIPS, "eval_batch_size": CLIPS, **train},
        }
    )


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A config's steps, compiled once, and its state before any of them."""

    config: Config
    parts: run.Parts
    optimizer: optax.GradientTransformation
    train_step: object
    eval_step: object

    def state(self, step=0, **fc):
        # Copies, as a step deletes what it is given.
        params = jax.tree.map(jnp.copy, self.parts.params)
        params["fc"] |= fc
        if self.parts.model.name == FUSED["name"]:
            # As large as trained ones; what passes through N(0, 0.001) twice is lost in rounding.
            for name in ("fc0", "fc1"):
                at(params, *SITE, name)["kernel"] *= 50
        stats = jax.tree.map(jnp.copy, self.parts.stats)
        state = states.initial(params, stats, self.optimizer, self.config.train.ema_decay)
        state = dataclasses.replace(state, step=jnp.int32(step))
        return jax.device_put(state, mesh.replicated(self.parts.devices))

    def train(self, state, batch):
        return self.train_step(state, mesh.put(batch, self.parts.devices), KEY)

    def evaluate(self, batch, key=None):
        state = self.state()
        return self.eval_step(state.params, state.stats, mesh.put(batch, self.parts.devices), key)


def trainer(config, devices=1):
    return _trainer(json.dumps(config.to_dict()), devices)


@functools.cache
def _trainer(values, devices):
    config = Config.from_dict(json.loads(values))
    parts = run.build(config, jax.devices()[:devices])
    optimizer = make_optimizer(config.optimizer, parts.params, 1, TOTAL)
    return Trainer(
        config,
        parts,
        optimizer,
        make_train_step(parts.graph, config, optimizer, TOTAL, parts.devices),
        make_eval_step(parts.graph, config, parts.devices),
    )


def batch(seed, **changes):
    rng = np.random.default_rng(seed)
    return {
        "clip": rng.integers(0, 256, (CLIPS, FRAMES, SIZE, SIZE, 3), np.uint8),
        "label": rng.integers(0, CLASSES, CLIPS, np.int32),
        "weight": np.ones(CLIPS, np.float32),
    } | changes


def at(tree, *path):
    return functools.reduce(lambda node, name: node[name], path, tree)


def assert_close(found, expected):
    """Up to rounding: 1e-5 of an array's largest entry."""

    def close(path, a, b):
        name = jax.tree_util.keystr(path)
        # This bias stands before a BatchNorm: its true gradient is 0, what is left is rounding alone.
        rounding = 1e-5 if "['fc0']['bias']" in name else 1e-7
        limit = rounding + 1e-5 * np.abs(b).max(initial=0)
        np.testing.assert_allclose(a, b, rtol=0, atol=limit, err_msg=name)

    jax.tree_util.tree_map_with_path(close, jax.device_get(found), jax.device_get(expected))


def test_eight_devices_train_as_one():
    runs = {}
    for devices in (1, 8):
        trained = trainer(config(), devices)
        state, history = trained.state(FULL - 2), []
        for seed in range(4):
            state, metrics = trained.train(state, batch(seed))
            history.append(metrics)
        assert all(len(leaf.sharding.device_set) == devices for leaf in jax.tree.leaves(state))
        runs[devices] = state, history
    # Sums in another order differ by about 1e-7 in a step, and a step of SGD passes that on about as it
    # is; a decision that flipped, or statistics of one device's clip alone, would differ by 1e-2.
    assert_close(runs[8], runs[1])
    assert int(runs[8][0].step) == FULL + 2


def test_the_state_is_donated():
    trained = trainer(config())
    before, clips = trained.state(), mesh.put(batch(0), trained.parts.devices)
    after, _ = trained.train_step(before, clips, KEY)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, clips)))


def test_a_step_depends_on_its_key_and_its_number():
    trained = trainer(config())
    first, again, later = (trained.train(trained.state(step), batch(0))[1] for step in (0, 0, 1))
    np.testing.assert_array_equal(first.decisions, again.decisions)
    assert (first.decisions != later.decisions).any()


def changes(loss, step):
    """How far a step of `loss` takes each parameter beyond a step of cross-entropy alone."""
    after = [
        jax.device_get(trained.train(trained.state(step), batch(0))[0].params)
        for trained in (trainer(config(loss=loss)), trainer(config(loss={})))
    ]
    return jax.tree.map(lambda a, b: a - b, *after)


def largest(tree):
    return max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree))


def test_the_efficiency_loss_reaches_all_that_decides_and_nothing_else():
    moved = changes(EFFICIENCY, FULL)
    for name in ("fc0", "fc1"):
        assert largest(at(moved, *SITE, name)["kernel"]) > 1e-6
    assert largest(moved["backbone"]["layer2"]) > 1e-6  # what the policy sees
    for path in (("fc",), (*SITE[:-1], "conv1"), (*SITE[:-1], "conv2")):
        assert largest(at(moved, *path)) < 1e-8


def test_flops_loss_real_and_upper_differ_and_both_pay_for_skipping():
    real, upper = (changes(EFFICIENCY | {"flops_loss": kind}, FULL) for kind in ("real", "upper"))
    bias = [at(moved, *SITE, "fc1", "bias").reshape(-1, 3) for moved in (real, upper)]
    assert np.abs(bias[0] - bias[1]).max() > 1e-6
    for moved in bias:
        assert (moved[:, 0] > 0).all()
    # To the upper bound, which counts conv2 alone, reuse costs what keep costs.
    assert (bias[1][:, 1:] < 0).all()


def test_the_parts_of_the_loss_in_closed_form():
    """Without smoothing the first is the metric; the second is lambda times the GMACs of a frame."""
    trained = trainer(config())
    for step, share in ((0, 0.0), (4, 0.5), (FULL, 1.0)):
        _, metrics = trained.train(trained.state(step), batch(0))
        found = metrics.compute()
        assert found["loss_parts"]["cross_entropy"] == pytest.approx(found["loss"], rel=1e-6)
        efficiency = share * EFFICIENCY["flops_weight"] * found["gmacs_per_clip"] / FRAMES
        assert found["loss_parts"]["efficiency"] == pytest.approx(efficiency, rel=1e-5)


def test_the_efficiency_weight_is_0_before_its_warm_up():
    for step in (0, 1):  # the warm-up starts at 0.25 of 8 steps
        assert largest(changes(EFFICIENCY, step)) < 1e-8
    assert largest(changes(EFFICIENCY, 3)) > 1e-6


def test_the_cost_falls_under_a_large_weight():
    trained = trainer(config())
    state, gmacs = trained.state(FULL), []
    for _ in range(40):
        state, metrics = trained.train(state, batch(0))
        gmacs.append(float(metrics.gmacs))
    fixed = flops.count(trained.parts.model, policies_of(2), image_size=SIZE)
    least = flops.count(trained.parts.model, policies_of(0), image_size=SIZE)
    span = (fixed.actual[0] - least.actual[0]) * CLIPS / 1e9
    assert gmacs[0] - gmacs[-1] > 0.2 * span


def policies_of(action):
    """All channels of the site doing the same."""
    return {"layer3.0": jax.nn.one_hot(jnp.full((1, FRAMES, 64), action), 3)}


def test_bfloat16_computes_near_float32_and_keeps_its_parameters():
    full, half = trainer(config()), trainer(config(precision="bfloat16"))
    expected, found = (t.evaluate(batch(0))[1][0] for t in (full, half))
    assert found.dtype == jnp.float32
    assert np.isfinite(found).all()
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 0.05  # bfloat16 has 8 bits; less than 1e-4 would mean that it wasn't used
    (state, metrics), (_, expected_metrics) = (t.train(t.state(), batch(0)) for t in (half, full))
    dtypes = [leaf.dtype for leaf in jax.tree.leaves((state.params, state.stats, state.opt_state))]
    assert {str(dtype) for dtype in dtypes} == {"float32", "int32"}  # the count of the schedule
    assert abs(metrics.loss / expected_metrics.loss - 1) < 0.01


SMOOTHED = config({"name": "tsn_tiny"}, {"label_smoothing": 0.3})


def test_smoothing_and_weights_in_closed_form():
    # With a classifier of zeros every class has probability 1/12, and the gradient of its bias is the
    # mean over the clips that count of 1/12 - smoothed target.
    trained = trainer(SMOOTHED)
    state = trained.state(kernel=jnp.zeros((64, CLASSES)))
    weight = np.array([1, 1, 1, 0, 1, 0, 1, 1], np.float32)
    given = batch(1, weight=weight)
    state, metrics = trained.train(state, given)
    target = 0.7 * np.eye(CLASSES)[given["label"]] + 0.3 / CLASSES
    gradient = (weight[:, None] * (1 / CLASSES - target)).sum(0) / weight.sum()
    np.testing.assert_allclose(state.params["fc"]["bias"], -LEARNING_RATE * 2 * gradient, rtol=1e-5)
    assert metrics.clips == 6
    np.testing.assert_allclose(metrics.loss / 6, np.log(CLASSES), rtol=1e-6)  # reported unsmoothed
    dense = flops.count(trained.parts.model, {}, image_size=SIZE, num_frames=FRAMES).dense
    np.testing.assert_allclose(metrics.gmacs / 6, dense / 1e9, rtol=1e-6)


def test_a_label_of_weight_0_counts_nowhere():
    trained = trainer(SMOOTHED)
    weight = np.array([1, 1, 1, 1, 1, 1, 1, 0], np.float32)
    labels = batch(2)["label"]
    others = np.append(labels[:-1], (labels[-1] + 1) % CLASSES).astype(np.int32)
    first, second = (
        trained.train(trained.state(), batch(2, label=x, weight=weight)) for x in (labels, others)
    )
    chex.assert_trees_all_equal(first, second)
    counted = trained.train(trained.state(), batch(2, label=others))[0]
    assert largest(jax.tree.map(lambda a, b: a - b, counted.params["fc"], first[0].params["fc"])) > 1e-4


def test_a_clip_of_weight_0_changes_no_metric_of_evaluation():
    trained = trainer(config())
    given = batch(3, weight=np.array([1, 0] * 4, np.float32))
    other = {**given, "clip": np.where(given["weight"].reshape(-1, 1, 1, 1, 1) > 0, given["clip"], 0)}
    first, second = (trained.evaluate(b)[0] for b in (given, other))
    chex.assert_trees_all_equal(first, second)
    assert first.clips == 4
    assert first.decisions.sum() == 4 * FRAMES * 64


@pytest.mark.parametrize("data", [Data(), Data(mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))])
def test_normalize_by_hand(data):
    clip = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3), np.uint8)
    found = normalize(jnp.asarray(clip), data)
    assert found.dtype == jnp.float32
    for colour in range(3):
        expected = (clip[..., colour].astype(np.float64) / 255 - data.mean[colour]) / data.std[colour]
        np.testing.assert_allclose(found[..., colour], expected, atol=1e-6)


def test_normalize_for_bn_inception():
    """Published: blue, green, red from 0 to 255, minus (104, 117, 128)."""
    data = Data(channel_order="bgr", max_value=255.0, mean=(104, 117, 128), std=(1, 1, 1))
    clip = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3), np.uint8)
    red, green, blue = np.moveaxis(clip.astype(np.float32), -1, 0)
    found = normalize(jnp.asarray(clip), data)
    np.testing.assert_array_equal(found, np.stack([blue - 104, green - 117, red - 128], -1))


def with_stats(trained, state, batches):
    for b in batches:
        state, metrics = trained.train(state, b)
    return jax.device_get(state), jax.device_get(metrics)


SURE = config({"name": "tsn_tiny", "dropout": 0.0}, {"label_smoothing": 0.1})  # nothing in it is drawn


def changed(config, **train):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train))


@pytest.mark.parametrize("devices", [1, 4])
def test_accumulated_parts_are_groups_of_the_norms(devices):
    """Parts one after the other give the gradient of as many groups side by side, each with its own norms."""
    parts = trainer(changed(SURE, accumulate=2), devices)
    groups = trainer(changed(SURE, norm_clips=CLIPS // 2))
    weight = np.array([1, 1, 0, 1, 0, 1, 1, 1], np.float32)
    given = batch(4, weight=weight)
    # Part m holds the clips m, m + 2, ...: put side by side they are the groups.
    order = np.arange(CLIPS).reshape(-1, 2).T.reshape(-1)
    (found, found_metrics), (expected, expected_metrics) = (
        with_stats(trained, trained.state(), [b])
        for trained, b in ((parts, given), (groups, {k: v[order] for k, v in given.items()}))
    )
    assert_close(found.params, expected.params)
    assert_close(found_metrics, expected_metrics)
    # Not those of all clips together, which the test would else not tell from them.
    together = with_stats(trainer(SURE), trainer(SURE).state(), [given])[0]
    assert largest(jax.tree.map(lambda a, b: a - b, together.params, expected.params)) > 1e-3


def test_groups_of_the_norms_train_alike_on_any_number_of_devices():
    runs = []
    for devices in (1, 2, 8):
        trained = trainer(changed(config(), norm_clips=4), devices)
        runs.append(with_stats(trained, trained.state(FULL), [batch(0), batch(1)]))
    assert_close(runs[1], runs[0])
    assert_close(runs[2], runs[0])


@pytest.mark.parametrize("train", [{"norm_clips": 3}, {"norm_clips": 8, "accumulate": 2}])
def test_groups_that_do_not_divide_what_goes_through_together(train):
    together = CLIPS // train.get("accumulate", 1)
    with pytest.raises(UserError, match=f"norm_clips: expected a divisor of the {together} clips .* found"):
        config(**train)
    with pytest.raises(UserError, match="accumulate: expected a divisor of batch_size 8, found 3"):
        config(accumulate=3)


def test_parts_that_the_devices_cannot_share():
    with pytest.raises(
        UserError, match="batch_size: expected a multiple of the 4 devices times 4 parts, foun"
    ):
        run.build(changed(SURE, accumulate=4), jax.devices()[:4])


def test_the_average_by_hand():
    decay = 0.15  # between the first two steps' own, 1/10 and 2/11
    trained = trainer(changed(SURE, ema_decay=decay))
    state = trained.state()
    expected = jax.device_get((state.params, state.stats))
    for step in range(3):
        state, _ = trained.train(state, batch(step))
        d = min(decay, (1 + step) / (10 + step))
        new = jax.device_get((state.params, state.stats))
        expected = jax.tree.map(lambda old, now, d=d: d * old + (1 - d) * now, expected, new)
        assert_close(state.ema, expected)
    assert largest(jax.tree.map(lambda a, b: a - b, state.ema, (state.params, state.stats))) > 1e-4


def test_averaging_changes_nothing_else():
    plain, averaging = (trainer(changed(SURE, ema_decay=d)) for d in (0.0, 0.99))
    (a, _), (b, _) = (with_stats(t, t.state(), [batch(0), batch(1)]) for t in (plain, averaging))
    assert a.ema is None
    assert_close(a, dataclasses.replace(b, ema=None))


@pytest.mark.parametrize("useless", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(useless):
    trained = trainer(changed(SURE, ema_decay=0.9))
    state, _ = trained.train(trained.state(), batch(0))
    before = jax.device_get(state)
    useless_weight = np.where(np.arange(CLIPS) == 3, useless, 1).astype(np.float32)
    after, metrics = trained.train(state, batch(1, weight=useless_weight))
    chex.assert_trees_all_equal(jax.device_get(after), dataclasses.replace(before, step=before.step + 1))
    assert metrics.skipped == 1
    assert all(not np.any(a) for a in jax.tree.leaves(dataclasses.replace(metrics, skipped=jnp.zeros(()))))
    assert trained.train(after, batch(1))[1].skipped == 0  # and the next one goes on
