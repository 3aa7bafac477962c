r"""TSN, EfficientNet-b2, on Something-Something V1.

The paper: 18.8% top-1, 46% top-5 at 8 GMACs per clip, 9.2M parameters. SGD, batch 64, 50 epochs, 12-24 h
on 4 V100, from ImageNet weights.

    python main.py --config=configs/sthv1_tsn_b2.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    return common.paper("sthv1", "tsn_b2")
