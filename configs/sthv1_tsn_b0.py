r"""TSN, EfficientNet-b0, on Something-Something V1.

The paper: 18% top-1, 44.9% top-5 at 3.1 GMACs per clip, 5.3M parameters. SGD, batch 64, 50 epochs, 12-24
h on 4 V100, from ImageNet weights.

    python main.py --config=configs/sthv1_tsn_b0.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    return common.paper("sthv1", "tsn_b0")
