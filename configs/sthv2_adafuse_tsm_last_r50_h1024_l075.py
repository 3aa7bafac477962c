r"""AdaFuse-TSM+Last, hidden 1024, lambda 0.075, ResNet50, on Something-Something V2.

The paper: 59.75% top-1 at 31.29 GMACs per clip, 39.1M parameters (TSN: 32.1% at 32.9). SGD, batch 64, 50
epochs, 12-24 h on 4 V100, from ImageNet weights.

    python main.py --config=configs/sthv2_adafuse_tsm_last_r50_h1024_l075.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    config = common.paper("sthv2", "adafuse_tsm_last_r50")
    config.model.hidden = 1024
    config.loss.flops_weight = 0.075
    return config
