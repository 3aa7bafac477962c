r"""AdaFuse-TSN, EfficientNet-b1, on Something-Something V1.

The paper: 40.3% top-1, 69.2% top-5 at 4.9 GMACs per clip, 12.4M parameters (TSN: 19.3% at 5.6). SGD,
batch 64, 50 epochs, 12-24 h on 4 V100, from ImageNet weights.

    python main.py --config=configs/sthv1_adafuse_tsn_b1.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    return common.paper("sthv1", "adafuse_tsn_b1")
