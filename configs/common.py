"""What the paper's runs have in common; each file beside this one says what is its own.

The paper, section 4, and reference.md, section 3: SGD with momentum 0.9 and weight decay 5e-4, a rate of 0.02
that falls tenfold after 20 and 40 of 50 epochs, batches of 64 clips, T = 8, multi-scale crops of 224 pixels:
all of it the defaults of adafuse_jax/config.py.
"""

import ml_collections

from adafuse_jax import config as cfg

# Classes; probability of a mirrored clip (only Mini-Kinetics' labels don't know left from right); loss and
# lambda. The scripts released for the two Something-Something say these; for the others none is published,
# and V2's stands in.
_DATA_SETS = {
    "sthv1": (174, 0.0, "upper", 0.125),
    "sthv2": (174, 0.0, "real", 0.075),
    "jester": (27, 0.0, "real", 0.075),
    "minik": (200, 0.5, "real", 0.075),
}


def paper(data: str, model: str) -> ml_collections.ConfigDict:
    """The paper's run of a model on a data set: a key of _DATA_SETS and a name of the zoo.

    Clips come from lists of videos or JPEG folders, or, by `--config.data.name=prepared`, from what
    `python -m data.prepare` wrote.
    """
    config = cfg.base()
    config.model.name = model
    config.data.num_classes, config.data.flip, flops_loss, flops_weight = _DATA_SETS[data]
    config.data.threads = 16
    if model.startswith("adafuse"):
        config.loss.flops_loss, config.loss.flops_weight = flops_loss, flops_weight
    return config


def bn_inception(config: ml_collections.ConfigDict) -> None:
    """The input that published BN-Inception weights want: BGR, 0 to 255, less the mean."""
    config.data.channel_order = "bgr"
    config.data.max_value = 255.0
    config.data.mean, config.data.std = (104.0, 117.0, 128.0), (1.0, 1.0, 1.0)
