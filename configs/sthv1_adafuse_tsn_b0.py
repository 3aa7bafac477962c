r"""AdaFuse-TSN, EfficientNet-b0, on Something-Something V1.

The paper: 39% top-1, 68.1% top-5 at 2.8 GMACs per clip, 9.3M parameters (TSN: 18% at 3.1). SGD, batch 64,
50 epochs, 12-24 h on 4 V100, from ImageNet weights.

    python main.py --config=configs/sthv1_adafuse_tsn_b0.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    return common.paper("sthv1", "adafuse_tsn_b0")
