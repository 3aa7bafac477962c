r"""AdaFuse-TSM+Last, hidden 4096, lambda 0.100, ResNet50, on Something-Something V2.

The paper: 60% top-1 at 31.04 GMACs per clip, 84.7M parameters (TSN: 32.1% at 32.9). SGD, batch 64, 50
epochs, 12-24 h on 4 V100, from ImageNet weights.

    python main.py --config=configs/sthv2_adafuse_tsm_last_r50_h4096_l100.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    config = common.paper("sthv2", "adafuse_tsm_last_r50")
    config.model.hidden = 4096
    config.loss.flops_weight = 0.1
    return config
