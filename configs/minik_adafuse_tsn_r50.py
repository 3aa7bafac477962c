r"""AdaFuse-TSN, ResNet50, on Mini-Kinetics.

The paper: 72.3% top-1 at 23 GMACs per clip, 37.8M parameters (TSN: 72.1% at 32.9). SGD, batch 64, 50
epochs, 12-24 h on 4 V100, from ImageNet weights. Its lambda isn't published.

    python main.py --config=configs/minik_adafuse_tsn_r50.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    return common.paper("minik", "adafuse_tsn_r50")
