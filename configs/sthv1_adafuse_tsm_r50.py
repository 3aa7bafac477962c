r"""AdaFuse-TSM, ResNet50, on Something-Something V1.

The paper: 44.9% top-1 at 19.1 GMACs per clip, 37.7M parameters (TSN: 18.7% at 32.9). SGD, batch 64, 50
epochs, 12-24 h on 4 V100, from ImageNet weights.

    python main.py --config=configs/sthv1_adafuse_tsm_r50.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    return common.paper("sthv1", "adafuse_tsm_r50")
