"""Evaluation: every clip once, whatever the batch and the devices, as a plain loop over clips finds it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adafuse_jax import flops
from adafuse_jax.config import Config
from adafuse_jax.errors import UserError
from adafuse_jax.input import pipeline, sources
from adafuse_jax.train import evaluate, mesh, run
from adafuse_jax.train.metrics import mean_average_precision
from adafuse_jax.train.state import put_together
from adafuse_jax.train.step import make_eval_step

CLIPS, FRAMES, SIZE = 21, 3, 32  # no batch size divides 21
CLOSE = {"rel": 1e-5, "abs": 1e-7}


def config(**train):
    return Config.from_dict(
        {
            "model": {"name": "adafuse_tsn_tiny", "prior": (0.2, 0.3, 0.5)},
            "data": {
                "name": "moving_shapes",
                "num_classes": 12,
                "num_frames": FRAMES,
                "image_size": SIZE,
                "val_clips": CLIPS,
            },
            "train": {"eval_batch_size": 8, "batch_size": 8, **train},
        }
    )


@pytest.fixture(scope="module")
def parts():
    """A net whose policies depend on the clip and whose classifier has an opinion, on all devices."""
    parts = run.build(config())
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        if "'fc" not in name or "'kernel'" not in name:
            return leaf
        return jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32)

    return dataclasses.replace(parts, params=jax.tree_util.tree_map_with_path(draw, parts.params))


def evaluated(parts, config, devices=8):
    parts = dataclasses.replace(parts, devices=mesh.make(jax.devices()[:devices]))
    return run.Evaluator(config, parts)(parts.params, parts.stats)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (name, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        assert a == pytest.approx(b, **CLOSE), name


@pytest.fixture(scope="module")
def by_eight(parts):
    return evaluated(parts, config())


@pytest.mark.parametrize("batch_size, devices", [(24, 8), (8, 1), (1, 1)])
def test_neither_batch_nor_devices_change_the_result(parts, by_eight, batch_size, devices):
    assert_same(evaluated(parts, config(eval_batch_size=batch_size), devices), by_eight)


def test_it_is_what_a_plain_loop_over_the_clips_finds(parts, by_eight):
    values = config()
    model = put_together(parts.graph, parts.params, parts.stats)
    source = sources.make_source(values, "val")
    classify = jax.jit(lambda clip: put_together(parts.graph, parts.params, parts.stats)(clip))
    logits, labels, gmacs, decisions, tenths = [], [], [], {}, {}
    for index in range(CLIPS):
        clip, label = source.read(index, None)
        clip = (clip / np.float32(255) - np.float32(values.data.mean)) / np.float32(values.data.std)
        out = classify(clip[None])
        cost = flops.count(model, out.policies, image_size=SIZE)
        logits.append(np.asarray(out.logits[0]))
        labels.append(label)
        gmacs.append(float(cost.actual[0]) / 1e9)
        for site, policy in out.policies.items():
            decisions.setdefault(site, []).append(np.asarray(policy).reshape(-1, 3))
            for frame in np.asarray(policy[0]):
                tenths.setdefault(site, []).append(np.minimum(frame.sum(0) * 10 // len(frame), 9))
    logits, labels = np.array(logits), np.array(labels)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ranked = np.argsort(-logits, -1)

    def shares(policies):
        return dict(zip(("skip", "reuse", "keep"), np.concatenate(policies).mean(0), strict=True))

    expected = {
        "clips": CLIPS,
        "loss": -log_p[np.arange(CLIPS), labels].mean(),
        "top1": (ranked[:, 0] == labels).mean(),
        "top5": (ranked[:, :5] == labels[:, None]).any(-1).mean(),
        "gmacs_per_clip": np.mean(gmacs),
        "shares": shares([np.concatenate(p) for p in decisions.values()]),
        # One site a stage.
        "stages": {f"stage{site[5]}": shares(policies) for site, policies in decisions.items()},
        "sites": {site: shares(policies) for site, policies in decisions.items()},
        "histograms": {
            site: {
                action: np.bincount(np.array(bins)[:, i].astype(int), minlength=10).tolist()
                for i, action in enumerate(("skip", "reuse", "keep"))
            }
            for site, bins in tenths.items()
        },
        "map": mean_average_precision(logits, labels),
        "dense_gmacs_per_clip": cost.dense / 1e9,
        "unreadable": 0,
    }
    assert_same(by_eight, expected)
    # The comparison says something: clips differ, and not everything is kept.
    assert len(set(gmacs)) > 1
    assert 0.05 < expected["shares"]["keep"] < 0.95
    assert 0 < expected["top5"] < 1


def test_sampled_evaluation_is_reproducible_and_follows_the_seed(parts, by_eight):
    sampled = config(eval_sampled=True)
    first, again, other = (evaluated(parts, c) for c in (sampled, sampled, config(eval_sampled=True, seed=1)))
    assert first == again
    assert first["shares"] != by_eight["shares"]
    assert first["shares"] != other["shares"]


def test_each_batch_is_sampled_with_a_key_of_its_own(parts):
    batch = next(pipeline.make_eval(config(), batch_size=8))
    step = make_eval_step(parts.graph, config(), parts.devices)
    key = jax.random.key(0)
    once, twice = (
        evaluate.evaluate(step, parts.params, parts.stats, [batch] * n, parts.devices, key) for n in (1, 2)
    )
    assert twice["clips"] == 2 * once["clips"]
    assert once["shares"] != pytest.approx(twice["shares"], abs=1e-6)


def test_views_of_a_clip_are_averaged_and_paid_for(parts):
    """As the same step finds each view alone: logits their mean, MACs and decisions their sum."""
    step = make_eval_step(parts.graph, config(), parts.devices)
    batch = next(pipeline.make_eval(config(), batch_size=8)) | {
        "weight": np.float32([1, 1, 0, 1, 1, 1, 1, 1])
    }
    views = [batch["clip"], batch["clip"][:, ::-1], 255 - batch["clip"]]

    def run(clip):
        given = mesh.put(batch | {"clip": np.ascontiguousarray(clip)}, parts.devices)
        return jax.device_get(step(parts.params, parts.stats, given, None))

    alone = [run(view) for view in views]
    metrics, (logits, labels, weights) = run(np.stack(views, axis=1))
    expected = np.mean([ranked[0] for _, ranked in alone], axis=0)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(labels, batch["label"])
    np.testing.assert_array_equal(weights, batch["weight"])
    assert metrics.clips == 7  # each once
    assert metrics.gmacs == pytest.approx(sum(m.gmacs for m, _ in alone), rel=1e-5)
    np.testing.assert_array_equal(metrics.decisions, sum(m.decisions for m, _ in alone))
    hits = (expected.argmax(-1) == labels) @ weights
    assert metrics.top1 == hits
    # The comparison says something: no view says what their mean says.
    assert all(np.abs(ranked[0] - expected).max() > 1e-3 for _, ranked in alone)


class Twice:
    """The clips of moving_shapes as two views of each: as it is, and backwards."""

    def __init__(self):
        self.clips = sources.make_source(config(), "val")

    def __len__(self):
        return len(self.clips)

    def read(self, index, rng):
        clip, label = self.clips.read(index, rng)
        return np.stack([clip, clip[::-1]]), label


def test_evaluation_counts_a_clip_of_several_views_once(parts, by_eight, monkeypatch):
    values = config()
    data = dataclasses.replace(values.data, name="video_list", resize=SIZE, test_clips=2)
    monkeypatch.setattr(pipeline, "make_source", lambda config, split: Twice())
    found = evaluated(parts, dataclasses.replace(values, data=data))
    assert (found["clips"], found["unreadable"]) == (CLIPS, 0)
    assert found["dense_gmacs_per_clip"] == pytest.approx(2 * by_eight["dense_gmacs_per_clip"])
    assert by_eight["gmacs_per_clip"] < found["gmacs_per_clip"] < found["dense_gmacs_per_clip"]


def test_processes_evaluate_the_clips_among_them(parts, by_eight, monkeypatch):
    """Two processes, one after the other: their means, weighted by their clips, are those of all clips."""
    found = []
    for index in range(2):
        monkeypatch.setattr(mesh, "processes", lambda i=index: {"shard_index": i, "shard_count": 2})
        found.append(evaluated(parts, config(eval_batch_size=16)))
    clips = [result["clips"] for result in found]
    assert clips == [8 + 5, 8]  # of 16 + 5
    for name in ("loss", "top1", "top5", "gmacs_per_clip"):
        mean = np.average([result[name] for result in found], weights=clips)
        assert mean == pytest.approx(by_eight[name], **CLOSE)


def test_no_clips(parts):
    with pytest.raises(UserError, match="evaluation: expected at least one clip, found none"):
        evaluate.evaluate(None, parts.params, parts.stats, [], parts.devices)
