r"""TRN multiscale, BN-Inception, on Something-Something V2.

The paper: 48.8% top-1 at 16 GMACs per clip, 18.3M parameters. SGD, batch 64, 50 epochs, 12-24 h on 4
V100, from ImageNet weights. The paper quotes these figures from other papers.

    python main.py --config=configs/sthv2_trn_inc.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    config = common.paper("sthv2", "trn_inc")
    common.bn_inception(config)
    return config
