r"""TSN, ResNet50, on Something-Something V2.

The paper: 32.1% top-1 at 32.9 GMACs per clip, 23.6M parameters. SGD, batch 64, 50 epochs, 12-24 h on 4
V100, from ImageNet weights. This run alone starts at a rate of 0.01.

    python main.py --config=configs/sthv2_tsn_r50.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    config = common.paper("sthv2", "tsn_r50")
    config.optimizer.learning_rate = 0.01
    return config
