r"""AdaFuse-TSN, ResNet-50 (v1), from ImageNet weights on 246 clips of people in the dark (ARID).

Not from the paper. Reaches, seed 0: 20.8% top-1 at 4.84 of 6.20 GMACs after 36 minutes on 2 busy CPU cores;
TSN 8.3% at 5.70 (20.8% halfway); AdaFuse from scratch 19.8% at 4.89 (5 epochs). Chance is 16.7%: a class's
training clips are, by their names, of 2 to 4 recordings, and those are learnt (84% of the training clips; a
linear classifier on ImageNet features: 100% of them, 15% of the validation clips).

WEIGHTS: ImageNet ResNet-50 of version 1, torchvision's names.

    python main.py --config=configs/arid_r50.py --config.train.init_from=WEIGHTS \
        --config.data.train_list=CLIPS/train_clips.txt --config.data.val_list=CLIPS/val_clips.txt

TSN from the same start: --config.model.name=tsn_r50 --config.loss.flops_weight=0; from scratch: without
--config.train.init_from.
"""

import ml_collections

from adafuse_jax import config as cfg


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    config = cfg.base()
    config.model.name = "adafuse_tsn_r50"
    config.model.stride_in_1x1 = True

    config.data.name = "video_list"
    config.data.num_classes = 6
    config.data.image_size = 96
    config.data.resize = 112
    config.data.flip = 0.5  # none of the classes knows left from right

    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1.0

    config.loss.flops_weight = 0.5

    config.train.epochs = 8.0
    config.train.batch_size = 8
    config.train.eval_batch_size = 16
    config.train.eval_every_epochs = 4.0
    return config
