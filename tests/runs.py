"""Small runs for the tests of training."""

import json

import jax

from adafuse_jax.config import Config
from adafuse_jax.train import loop, run
from adafuse_jax.train import state as states
from adafuse_jax.train.checkpoint import Checkpoints
from adafuse_jax.train.optim import make_optimizer

SHAPES = {
    "name": "moving_shapes",
    "num_classes": 12,
    "num_frames": 2,
    "image_size": 16,
    "train_clips": 40,
    "val_clips": 12,
}
FUSED = {"name": "adafuse_tsn_tiny", "fusion_stages": (3,), "prior": (0.2, 0.3, 0.5)}
PLAIN = {"name": "tsn_tiny"}
VIDEOS = {"name": "video_list", "num_classes": 12, "num_frames": 2, "image_size": 16, "resize": 18}


def config(model=FUSED, data=SHAPES, optimizer=(), **train):
    """Two epochs of five steps: evaluated after 5 and 10, saved after 3, 6 and 9 too."""
    rhythm = {"eval_every_epochs": 1.0, "checkpoint_every_steps": 3, "log_every_steps": 2}
    return Config.from_dict(
        {
            "model": model,
            "data": data,
            "optimizer": {"name": "adamw", "learning_rate": 1e-3, "schedule": "cosine", **dict(optimizer)},
            "loss": {"flops_weight": 100.0, "flops_warmup": (0.2, 0.8)},
            "train": {"epochs": 2.0, "batch_size": 8, "eval_batch_size": 8, **rhythm, **train},
        }
    )


def logged(workdir):
    """The lines of metrics.jsonl, without what the clock decides."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("time", "speed")} for line in lines]


def state_of(workdir, config):
    """All that the latest checkpoint of a run holds: its state, its position in the data, its step."""
    parts = run.build(config)
    optimizer = make_optimizer(config.optimizer, parts.params, 1, 100)
    like = states.initial(parts.params, parts.stats, optimizer, config.train.ema_decay)
    with Checkpoints(workdir, write=False) as checkpoints:
        restored = checkpoints.restore_latest(like, config.model.name)
    return jax.device_get(restored.state), restored.data, restored.step


def at(monkeypatch, position, action):
    """Does something when the batch after `position` is asked for."""
    make = loop.pipeline.make_train

    class Interrupted:
        def __init__(self, *args, **options):
            self.batches = make(*args, **options)

        def __next__(self):
            if self.batches.position == position:
                action()
            return next(self.batches)

        def __getattr__(self, name):
            return getattr(self.batches, name)

    monkeypatch.setattr(loop.pipeline, "make_train", Interrupted)
