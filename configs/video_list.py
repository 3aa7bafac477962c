r"""AdaFuse-TSN, ResNet-18, on anybody's own videos.

    python main.py --config=configs/video_list.py --config.data.num_classes=6 \
        --config.data.train_list=train.txt --config.data.val_list=val.txt

Lists hold "path label" (videos) or "folder frames label" (JPEG folders), a clip a line, paths relative to
the list. `--config.data.flip=0.5` mirrors clips where labels don't know left from right.
"""

import ml_collections

from adafuse_jax import config as cfg


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    config = cfg.base()
    config.model.name = "adafuse_tsn_r18"

    config.data.name = "video_list"
    config.data.num_classes = 6
    config.data.image_size = 112
    config.data.resize = 128

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1.0

    config.loss.flops_loss = "real"
    config.loss.flops_weight = 0.5
    config.loss.flops_warmup = (0.4, 0.7)  # from scratch: first learn, then save

    config.train.epochs = 20.0
    config.train.batch_size = 16
    config.train.eval_batch_size = 16
    return config
