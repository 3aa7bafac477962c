r"""TSN, ResNet18, on Something-Something V2.

The paper: 27.3% top-1 at 14.6 GMACs per clip, 11.2M parameters. SGD, batch 64, 50 epochs, 12-24 h on 4
V100, from ImageNet weights.

    python main.py --config=configs/sthv2_tsn_r18.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    return common.paper("sthv2", "tsn_r18")
