"""AdaFuse from scratch on moving_shapes, where the order of the frames decides.

Reaches: see README.md. Two CPU cores suffice. Not from the paper.

    python main.py --config=configs/moving_shapes.py
"""

import ml_collections

from adafuse_jax import config as cfg


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    config = cfg.base()
    config.model.name = "adafuse_tsn_tiny"
    config.model.dropout = 0.0
    config.model.prior = (0.0, 1 / 3, 2 / 3)  # channels that start towards skip, reuse, keep

    config.data.name = "moving_shapes"
    config.data.num_classes = 12
    config.data.image_size = 48
    config.data.level = "easy"
    config.data.train_clips = 16_000
    config.data.val_clips = 600

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 0.05

    config.loss.flops_loss = "real"
    config.loss.flops_weight = 100.0  # per GMAC; a frame has 0.0076
    config.loss.flops_warmup = (0.35, 0.6)

    config.train.epochs = 1.0
    config.train.batch_size = 8
    config.train.eval_batch_size = 24
    config.train.eval_every_epochs = 0.5
    return config
