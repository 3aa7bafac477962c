r"""AdaFuse-TSN, ResNet18, on Jester.

The paper: 93.7% top-1 at 7.6 GMACs per clip, 15.6M parameters (TSN: 82.6% at 14.6). SGD, batch 64, 50
epochs, 12-24 h on 4 V100, from ImageNet weights. Its lambda isn't published.

    python main.py --config=configs/jester_adafuse_tsn_r18.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    return common.paper("jester", "adafuse_tsn_r18")
