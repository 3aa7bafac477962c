"""Metrics are sums: any split, any order and any padding of the clips gives the same figures."""

import functools
import operator
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_jax.errors import UserError
from adafuse_jax.ops import actions as act
from adafuse_jax.train.metrics import Metrics, Scores, mean_average_precision

CLASSES, FRAMES, CHANNELS = 7, 2, {"layer2.0": 3, "layer10.0": 4, "layer2.1": 5}


def _clips(seed, clips, actions=act.ALL):
    rng = np.random.default_rng(seed)
    policies = {
        site: np.eye(len(actions), dtype=np.float32)[rng.integers(0, len(actions), (clips, FRAMES, channels))]
        for site, channels in CHANNELS.items()
    }
    return {
        "logits": rng.standard_normal((clips, CLASSES)).astype(np.float32),
        "labels": rng.integers(0, CLASSES, clips),
        "weights": np.ones(clips, np.float32),
        "macs": rng.uniform(1e9, 9e9, clips).astype(np.float32),
        "policies": policies,
    }


def _each(change, batch):
    """Not `jax.tree.map`: that would sort the sites by name."""
    return {k: _each(change, v) if isinstance(v, dict) else change(v) for k, v in batch.items()}


def _numbers(metrics):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(metrics)]


def _close(a, b):
    assert (a.sites, a.actions) == (b.sites, b.actions)
    for x, y in zip(_numbers(a), _numbers(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_published_accuracy(golden_units):
    meta, arrays = golden_units
    labels = arrays["loss_target"][:, 0]
    found = Metrics.of(jnp.asarray(arrays["loss_logits"]), labels, np.ones(4), np.ones(4), {}).compute()
    np.testing.assert_allclose([100 * found["top1"], 100 * found["top5"]], meta["accuracy_top1_5"])
    np.testing.assert_allclose(found["loss"], meta["loss_real"]["acc_loss"], rtol=1e-6)


def test_figures_of_a_batch_worked_out_by_hand():
    one = np.eye(3, dtype=np.float32)
    found = Metrics.of(
        logits=jnp.asarray([[0, 9, 1.0], [5, 0, 1], [0, 0, 1]]),
        labels=np.asarray([1, 2, 0]),
        weights=np.asarray([1.0, 1, 0]),
        macs=np.asarray([3e9, 5e9, 7e9]),
        policies={"a": one[[[[0]], [[2]], [[1]]]], "b": one[[[[2, 2, 2]], [[1, 1, 2]], [[0, 0, 0]]]]},
    ).compute()
    assert (found["clips"], found["top1"], found["top5"]) == (
        2,
        0.5,
        1.0,
    )  # of three classes, the five best are all
    np.testing.assert_allclose(found["gmacs_per_clip"], 4)
    assert found["shares"] == {"skip": 1 / 8, "reuse": 2 / 8, "keep": 5 / 8}
    assert list(found["sites"]) == ["a", "b"]
    assert found["sites"]["a"] == {"skip": 0.5, "reuse": 0.0, "keep": 0.5}
    np.testing.assert_allclose(list(found["sites"]["b"].values()), [0, 1 / 3, 2 / 3])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), order=st.permutations(range(12)), fives=st.integers(0, 2))
def test_any_split_in_any_order_gives_the_same(seed, order, fives):
    batch = _clips(seed, 12)
    cuts = [5 * i for i in range(1, fives + 1)]
    cuts += range(cuts[-1] + 1 if cuts else 1, 12)  # the rest one by one: few sizes, few compilations
    parts = np.split(np.asarray(order), cuts)
    merged = functools.reduce(
        Metrics.merge, [Metrics.of(**_each(operator.itemgetter(rows), batch)) for rows in parts]
    )
    _close(merged, Metrics.of(**batch))


@settings(max_examples=10, deadline=None)
@given(seeds=st.lists(st.integers(0, 99), min_size=3, max_size=3))
def test_merge_is_associative_and_commutative(seeds):
    a, b, c = (Metrics.of(**_clips(seed, 3)) for seed in seeds)
    _close(a.merge(b), b.merge(a))
    _close(a.merge(b).merge(c), a.merge(b.merge(c)))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), padding=st.sampled_from([1, 4]))
def test_padding_changes_nothing(seed, padding):
    batch = _clips(seed, 4)
    padded = _each(lambda a: np.concatenate([a, a[:1].repeat(padding, 0)]), batch)
    padded["weights"][4:] = 0
    padded["logits"][4:] = np.nan
    padded["macs"][4:] = np.nan
    _close(Metrics.of(**padded), Metrics.of(**batch))


def test_the_compiled_batch_over_all_devices_is_the_same():
    devices = jax.devices()
    if len(devices) == 1:
        pytest.skip("one device")
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    batch = _clips(5, 2 * len(devices))
    spread = jax.device_put({k: v for k, v in batch.items() if k != "policies"}, sharding)
    policies = jax.device_put(batch["policies"], sharding)
    compiled = jax.jit(lambda b, p: Metrics.of(**b, policies={site: p[site] for site in CHANNELS}))
    found = compiled(spread, policies)
    assert found.sites == tuple(CHANNELS)
    _close(found, Metrics.of(**batch))


@pytest.mark.parametrize("actions", [("reuse", "keep"), ("skip", "keep")])
def test_an_action_that_cannot_be_chosen_has_no_share(actions):
    found = Metrics.of(**_clips(0, 4, actions), actions=actions).compute()
    absent = ({"skip", "reuse"} - set(actions)).pop()
    assert found["shares"][absent] == 0
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["shares"]["keep"] > 0


def test_shares_of_a_stage_are_those_of_all_its_decisions():
    stages = ("stage2", "stage10", "stage2")
    metrics = Metrics.of(**_clips(0, 4), stages=stages)
    found = metrics.merge(Metrics.of(**_clips(1, 3), stages=stages)).compute()
    assert list(found["stages"]) == ["stage2", "stage10"]
    assert found["stages"]["stage10"] == found["sites"]["layer10.0"]
    for action, share in found["stages"]["stage2"].items():
        by_site = [found["sites"][site][action] * CHANNELS[site] for site in ("layer2.0", "layer2.1")]
        assert share == pytest.approx(sum(by_site) / (3 + 5))


@pytest.mark.parametrize("channels", [1, 3, 10, 64])
def test_histograms_tell_how_frames_differ(channels):
    """Each frame counts once for each action, in the bin of its own share of the channels."""
    rng = np.random.default_rng(channels)
    kept = np.concatenate([[0, channels], rng.integers(0, channels + 1, 4)]).reshape(3, FRAMES)
    chosen = np.where(np.arange(channels) < kept[..., None], 2, 0)  # the others are skipped
    batch = _clips(0, 3) | {"policies": {"a": np.eye(3, dtype=np.float32)[chosen]}}
    batch["weights"][2] = 0  # padding
    found = Metrics.of(**batch).histograms()["a"]

    def counted(channels_of_frames):
        shares = [Fraction(int(number), channels) for number in channels_of_frames]
        below = [sum(share < Fraction(i, 10) for share in shares) for i in range(10)] + [len(shares)]
        return np.diff(below).tolist()

    assert found["keep"] == counted(kept[:2].ravel())
    assert found["skip"] == counted(channels - kept[:2].ravel())
    assert found["reuse"] == [2 * FRAMES] + 9 * [0]


def test_loss_parts_are_means_over_the_clips_of_all_batches():
    three, one = (
        Metrics.of(**_clips(0, n)).with_loss_parts({"a": jnp.float32(v)}) for n, v in ((3, 2), (1, 6))
    )
    assert three.merge(one).compute()["loss_parts"] == {"a": 3.0}
    assert three.histograms() == {}
    assert "loss_parts" not in Metrics.of(**_clips(0, 3)).compute()


def test_a_net_without_policies_keeps_everything():
    batch = _clips(0, 4) | {"policies": {}}
    found = Metrics.of(**batch).merge(Metrics.of(**batch)).compute()
    assert found["shares"] == {"skip": 0, "reuse": 0, "keep": 1}
    assert found["sites"] == found["stages"] == {}
    assert Metrics.of(**batch).histograms() == {}


def test_equal_logits_are_no_hit_for_every_class():
    """A collapsed model mustn't score above chance."""
    labels = np.arange(CLASSES)
    found = Metrics.of(
        jnp.zeros((CLASSES, CLASSES)), labels, np.ones(CLASSES), np.ones(CLASSES), {}
    ).compute()
    assert found["top1"] == pytest.approx(1 / CLASSES)
    assert found["top5"] == pytest.approx(5 / CLASSES)


def test_no_clip_is_an_error():
    batch = _clips(0, 2)
    batch["weights"][:] = 0
    with pytest.raises(UserError, match="expected at least one clip, found none"):
        Metrics.of(**batch).compute()
    with pytest.raises(UserError, match="expected at least one clip, found none"):
        Scores().mean_average_precision()


@pytest.mark.parametrize(("name", "columns"), [("mAP_single", 1), ("mAP_multi", 3)])
def test_published_mean_average_precision(golden_units, name, columns):
    meta, arrays = golden_units
    labels = arrays["loss_target"][:, :columns]
    found = mean_average_precision(arrays["loss_logits"], labels, published=True)
    np.testing.assert_allclose(100 * found, meta[name], rtol=1e-6)


def test_published_and_right_agree_where_every_class_occurs():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((40, 4)), np.arange(40) % 4
    right = mean_average_precision(logits, labels)
    assert mean_average_precision(logits, labels, published=True) == pytest.approx(right)


def test_a_perfect_ranking_is_one_even_where_classes_are_missing():
    labels = np.asarray([[1, -1], [4, 1], [4, -1]])
    logits = np.zeros((3, 6))
    logits[[0, 1, 1, 2], [1, 4, 1, 4]] = 1
    assert mean_average_precision(logits, labels) == 1
    assert mean_average_precision(logits, labels, published=True) < 1


def test_average_precision_worked_out_by_hand():
    """Class 0 ranks hit, miss, hit: (1 + 2/3) / 2; class 1 ranks miss, hit, miss: 1/2."""
    logits = np.asarray([[3, 1.0], [2, 2], [1, 3]])
    assert mean_average_precision(logits, np.asarray([0, 1, 0])) == pytest.approx((5 / 6 + 1 / 2) / 2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), cut=st.integers(0, 10), padding=st.integers(0, 3))
def test_scores_merge_and_leave_out_padding(seed, cut, padding):
    rng = np.random.default_rng(seed)
    logits = rng.integers(-2, 3, (10, 4)).astype(np.float32)  # with ties: the order mustn't matter
    labels = rng.integers(0, 4, 10)
    first, second = Scores(), Scores()
    second.append(logits[:cut], labels[:cut], np.ones(cut))
    garbage = np.full((padding, 4), np.nan)
    first.append(
        np.concatenate([logits[cut:], garbage]),
        np.concatenate([labels[cut:], np.full(padding, 3)]),
        np.concatenate([np.ones(10 - cut), np.zeros(padding)]),
    )
    found = first.merge(second).mean_average_precision()
    assert found == pytest.approx(mean_average_precision(logits, labels))


@pytest.mark.parametrize(("labels", "found"), [([0, 4], "label 4"), ([-1, -1], "no label")])
def test_labels_that_are_no_class(labels, found):
    with pytest.raises(UserError, match=f"from 0 to 3, found {found}"):
        mean_average_precision(np.zeros((2, 4)), np.asarray(labels))


def test_mean_average_precision_ranks_probabilities():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(40, 5)), rng.integers(0, 5, 40)
    shifted = logits + 10 * rng.normal(size=(40, 1))  # the same probabilities
    assert mean_average_precision(shifted, labels) == pytest.approx(mean_average_precision(logits, labels))
