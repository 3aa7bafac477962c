r"""AdaFuse-TSN, EfficientNet-b2, on Something-Something V1.

The paper: 40.2% top-1, 69.5% top-5 at 7.2 GMACs per clip, 13.8M parameters (TSN: 18.8% at 8). SGD, batch
64, 50 epochs, 12-24 h on 4 V100, from ImageNet weights.

    python main.py --config=configs/sthv1_adafuse_tsn_b2.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    return common.paper("sthv1", "adafuse_tsn_b2")
