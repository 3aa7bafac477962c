"""Small runs for the tests of training."""

import json

from adafuse_jax.config import Config

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
