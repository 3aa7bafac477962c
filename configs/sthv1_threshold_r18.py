r"""Threshold, ResNet18, on Something-Something V1.

The paper: 14.1% top-1, 36.6% top-5 at 11.3 GMACs per clip, 11.2M parameters (TSN: 14.8% at 14.6). SGD,
batch 64, 50 epochs, 12-24 h on 4 V100, from ImageNet weights. Nothing is learnt; three quarters of the
channels cost about what the paper's did.

    python main.py --config=configs/sthv1_threshold_r18.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    config = common.paper("sthv1", "threshold_r18")
    config.model.keep_share = 0.75
    return config
