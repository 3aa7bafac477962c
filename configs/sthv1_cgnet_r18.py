r"""CGNet, ResNet18, on Something-Something V1.

The paper: 13.7% top-1, 35.1% top-5 at 11.2 GMACs per clip, 11.2M parameters (TSN: 14.8% at 14.6). SGD,
batch 64, 50 epochs, 12-24 h on 4 V100, from ImageNet weights. Its own loss on the gates' thresholds takes
the place of the efficiency loss.

    python main.py --config=configs/sthv1_cgnet_r18.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    return common.paper("sthv1", "cgnet_r18")
