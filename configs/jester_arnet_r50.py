r"""AR-Net, ResNet50, on Jester.

The paper: 87.8% top-1 at 21.2 GMACs per clip, 63M parameters (TSN: 82.6% at 32.9). SGD, batch 64, 50
epochs, 12-24 h on 4 V100, from ImageNet weights. Sixteen frames and its own losses, as its published scripts.

    python main.py --config=configs/jester_arnet_r50.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    config = common.paper("jester", "arnet_r50")
    config.data.num_frames = 16
    config.loss.flops_weight, config.loss.uniform_weight = 0.0526, 0.158
    return config
