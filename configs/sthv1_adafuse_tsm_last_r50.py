r"""AdaFuse-TSM+Last, ResNet50, on Something-Something V1.

The paper: 46.8% top-1 at 31.5 GMACs per clip, 39.1M parameters (TSN: 18.7% at 32.9). SGD, batch 64, 50
epochs, 12-24 h on 4 V100, from ImageNet weights.

    python main.py --config=configs/sthv1_adafuse_tsm_last_r50.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    return common.paper("sthv1", "adafuse_tsm_last_r50")
