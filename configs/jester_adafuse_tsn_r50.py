r"""AdaFuse-TSN, ResNet50, on Jester.

The paper: 94.7% top-1 at 16.1 GMACs per clip, 37.8M parameters (TSN: 82.6% at 32.9). SGD, batch 64, 50
epochs, 12-24 h on 4 V100, from ImageNet weights. Its lambda isn't published.

    python main.py --config=configs/jester_adafuse_tsn_r50.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    return common.paper("jester", "adafuse_tsn_r50")
