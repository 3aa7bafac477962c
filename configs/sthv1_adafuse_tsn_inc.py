r"""AdaFuse-TSN, BN-Inception, on Something-Something V1.

The paper: 38.5% top-1, 67.8% top-5 at 12.1 GMACs per clip, 14.5M parameters (TSN: 17.6% at 16.4). SGD,
batch 64, 50 epochs, 12-24 h on 4 V100, from ImageNet weights.

    python main.py --config=configs/sthv1_adafuse_tsn_inc.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    config = common.paper("sthv1", "adafuse_tsn_inc")
    common.bn_inception(config)
    return config
