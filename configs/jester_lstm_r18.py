r"""LSTM, ResNet18, on Jester.

The paper: 93.5% top-1 at 14.7 GMACs per clip, 11.7M parameters (TSN: 82.6% at 14.6). SGD, batch 64, 50
epochs, 12-24 h on 4 V100, from ImageNet weights.

    python main.py --config=configs/jester_lstm_r18.py \
        --config.data.train_list=LIST --config.data.val_list=LIST
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values."""
    return common.paper("jester", "lstm_r18")
