r"""AdaFuse-TSM+Last, ResNet50, on Something-Something V2.

The paper: 59.8% top-1 at 31.3 GMACs per clip, 39.1M parameters (TSN: 32.1% at 32.9). SGD, batch 64, 50
epochs, 12-24 h on 4 V100, from ImageNet weights.

    python main.py --config=configs/sthv2_adafuse_tsm_last_r50.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    return common.paper("sthv2", "adafuse_tsm_last_r50")
