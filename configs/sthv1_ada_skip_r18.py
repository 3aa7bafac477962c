r"""Ada. Skip, ResNet18, on Something-Something V1.

The paper: 9.5% top-1 at 6.6 GMACs per clip (TSN: 14.8% at 14.6). SGD, batch 64, 50 epochs, 12-24 h on 4
V100, from ImageNet weights.

    python main.py --config=configs/sthv1_ada_skip_r18.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    config = common.paper("sthv1", "adafuse_tsn_r18")
    config.model.actions = ("skip", "keep")
    return config
