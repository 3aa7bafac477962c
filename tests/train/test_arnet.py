"""AR-Net in the steps and reports that other models go through."""

import jax
import numpy as np
import pytest

from adafuse_jax.config import Config
from adafuse_jax.report import policies, summary
from adafuse_jax.train import mesh, run
from adafuse_jax.train import state as states
from adafuse_jax.train.optim import make_optimizer
from adafuse_jax.train.step import make_eval_step, make_train_step

CLIPS, FRAMES, SIZE, CLASSES = 8, 4, 24, 12
CONFIG = Config.from_dict(
    {
        "model": {"name": "arnet_tiny"},
        "data": {"num_classes": CLASSES, "num_frames": FRAMES, "image_size": SIZE, "resize": SIZE},
        # Nothing but the cross-entropy moves a parameter.
        "optimizer": {"learning_rate": 0.1, "weight_decay": 0.0},
        "train": {"batch_size": CLIPS, "eval_batch_size": CLIPS},
    }
)


@pytest.fixture(scope="module")
def parts():
    return run.build(CONFIG, jax.devices()[:1])


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "clip": rng.integers(0, 256, (CLIPS, FRAMES, SIZE, SIZE, 3), np.uint8),
        "label": rng.integers(0, CLASSES, CLIPS, np.int32),
        "weight": np.ones(CLIPS, np.float32),
    }


def test_a_step_of_cross_entropy_moves_every_parameter_and_statistic(parts, batch):
    """The policy network's decisions, too: the straight-through gradient reaches them from the logits."""
    optimizer = make_optimizer(CONFIG.optimizer, parts.params, 1, 10)
    step = make_train_step(parts.graph, CONFIG, optimizer, 10, parts.devices)
    start = jax.tree.map(np.asarray, (parts.params, parts.stats))
    # Classifiers of N(0, 0.001) would pass on next to nothing.
    params = jax.tree.map(np.copy, start[0])
    for head in params["heads"].values():
        head["kernel"] *= 100
    params["decide"]["kernel"] *= 100
    state = states.initial(params, start[1], optimizer)
    after, metrics = step(
        jax.device_put(state, mesh.replicated(parts.devices)),
        mesh.put(batch, parts.devices),
        jax.random.key(0),
    )
    before = (params, start[1])
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), (after.params, after.stats), before)
    assert all(jax.tree.leaves(moved))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))
    assert metrics.decisions.shape == (1, 7)
    assert float(metrics.decisions.sum()) == CLIPS * FRAMES


def test_evaluation_and_its_report(parts, batch, tmp_path):
    step = make_eval_step(parts.graph, CONFIG, parts.devices)
    placed = jax.device_put((parts.params, parts.stats), mesh.replicated(parts.devices))
    metrics, _ = step(*placed, mesh.put(batch, parts.devices), jax.random.key(1))
    found, actions = metrics.compute(), ("48", "36", "24", "18", "skip1", "skip2", "skip4")
    assert tuple(found["shares"]) == actions == parts.model.actions
    shares = np.asarray(list(found["shares"].values()))
    np.testing.assert_allclose(shares * CLIPS * FRAMES, metrics.decisions[0], rtol=1e-6)
    assert found["sites"] == {"resolution": found["shares"]}
    # The policy network is asked at some frames, but not at all.
    frame = parts.model.count((SIZE, SIZE))
    site = frame.sites["resolution"]
    asked = found["gmacs_per_clip"] * 1e9 / FRAMES - shares @ site.spent
    assert site.policy / FRAMES < asked < site.policy

    dense = frame.dense * FRAMES / 1e9
    text = summary.evaluation(found | {"map": 0.5, "unreadable": 0, "dense_gmacs_per_clip": dense})
    assert f"skip4 {shares[-1]:6.1%}" in text
    policies.draw(found["sites"], tmp_path / "shares.png", "shares")
    decided = {"resolution": np.eye(7, dtype=np.float32)[[[0], [3], [6], [6]]]}
    policies.draw_clip(batch["clip"][0], decided, actions, tmp_path / "clip.png", "a clip")
    for name in ("shares.png", "clip.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
