r"""Random, ResNet18, on Something-Something V1.

The paper: 27.5% top-1, 54.2% top-5 at 10.4 GMACs per clip, 11.2M parameters (TSN: 14.8% at 14.6). SGD,
batch 64, 50 epochs, 12-24 h on 4 V100, from ImageNet weights. No policy is learnt: shares of the actions
at which a clip costs what the paper's did.

    python main.py --config=configs/sthv1_random_r18.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    config = common.paper("sthv1", "random_r18")
    config.model.target_gmacs = 10.4
    return config
