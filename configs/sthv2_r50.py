r"""AdaFuse-TSN, ResNet-50, on Something-Something V2.

The paper: 56.8% top-1 at 18.1 GMACs per clip of 8 frames (TSN: 32.1% at 32.9). SGD, batch 64, 50 epochs,
12-24 h on 4 V100, from ImageNet weights.

    python main.py --config=configs/sthv2_r50.py \
        --config.data.train_list=LIST --config.data.val_list=LIST

or, from what `python -m data.prepare something_something_v2` has prepared,

    python main.py --config=configs/sthv2_r50.py \
        --config.data.name=prepared --config.data.prepared_dir=DIR

The same checkpoint with two samplings of a clip and three crops at full resolution, for 7.8 times the MACs:

    python main.py --config=configs/sthv2_r50.py --mode=eval --config.data.val_list=LIST \
        --config.data.image_size=256 --config.data.test_clips=2 --config.data.test_crops=3

Lists hold "path label" (videos) or "folder frames label" (JPEG folders), a clip a line.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The run's values.

    Labels know left from right. To mirror clips all the same, not as published: config.data.flip = 0.5 and
    config.data.flip_labels = "configs/flip_labels/something_something.txt".
    """
    return common.paper("sthv2", "adafuse_tsn_r50")
