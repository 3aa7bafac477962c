r"""TSN, BN-Inception, on Something-Something V1.

The paper: 17.6% top-1, 43.5% top-5 at 16.4 GMACs per clip, 10.4M parameters. SGD, batch 64, 50 epochs,
12-24 h on 4 V100, from ImageNet weights.

    python main.py --config=configs/sthv1_tsn_inc.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    config = common.paper("sthv1", "tsn_inc")
    common.bn_inception(config)
    return config
