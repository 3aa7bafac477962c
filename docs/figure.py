"""Draws docs/figure.png: what a trained run decides for one clip of moving_shapes.

python docs/figure.py runs/moving_shapes
"""

import sys
from pathlib import Path

import jax
import numpy as np

from adafuse_jax.input.moving_shapes import CLASSES, MovingShapes
from adafuse_jax.report import policies
from adafuse_jax.train.run import load
from adafuse_jax.train.state import put_together
from adafuse_jax.train.step import cost_of, normalize

CLIP = 1  # of the validation clips

trained = load(Path(sys.argv[1]))
parts, config = trained.parts, trained.config
model = put_together(parts.graph, parts.params, parts.stats)
data = config.data
shapes = MovingShapes("val", data.num_frames, data.level, data.val_clips, image_size=data.image_size)
clip, label = shapes[CLIP]["clip"], shapes[CLIP]["label"]
out = model(normalize(clip[None], data))
cost = cost_of(model, out, config)
share = float(cost.actual[0]) / cost.dense
probability = float(jax.nn.softmax(out.logits[0])[label])
policies.draw_clip(
    clip,
    {site: np.asarray(policy[0]) for site, policy in out.policies.items()},
    model.actions,
    Path(__file__).with_name("figure.png"),
    f"“{CLASSES[label]}”, recognised at {probability:.0%} with {share:.0%} of the dense MACs",
)
