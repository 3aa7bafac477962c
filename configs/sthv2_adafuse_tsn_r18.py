r"""AdaFuse-TSN, ResNet18, on Something-Something V2.

The paper: 50.5% top-1 at 11.1 GMACs per clip, 15.6M parameters (TSN: 27.3% at 14.6). SGD, batch 64, 50
epochs, 12-24 h on 4 V100, from ImageNet weights.

    python main.py --config=configs/sthv2_adafuse_tsn_r18.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    return common.paper("sthv2", "adafuse_tsn_r18")
