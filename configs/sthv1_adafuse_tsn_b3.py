r"""AdaFuse-TSN, EfficientNet-b3, on Something-Something V1.

The paper: 40.7% top-1, 69.7% top-5 at 12.9 GMACs per clip, 16.6M parameters (TSN: 19.3% at 14.4). SGD,
batch 64, 50 epochs, 12-24 h on 4 V100, from ImageNet weights.

    python main.py --config=configs/sthv1_adafuse_tsn_b3.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    return common.paper("sthv1", "adafuse_tsn_b3")
