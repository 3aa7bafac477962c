"""torchvision's names of EfficientNet's parameters.

torchvision's weights of b0 to b3 want a model made with `padding="torch"` and `bn_epsilon=1e-5`.
"""

from adafuse_jax.models.efficientnet import EfficientNet
from adafuse_jax.models.mbconv import MBConv


def efficientnet_names(backbone: EfficientNet) -> dict[str, str]:
    """{torchvision's name of a layer: the published name}, of the classifier too."""
    names = {"features.0.0": "base_model._conv_stem", "features.0.1": "base_model._bn0"}
    places = [(stage, i) for stage, count in enumerate(backbone.repeats, 1) for i in range(count)]
    for n, ((stage, i), block) in enumerate(zip(places, backbone.blocks, strict=True)):
        layers = ("0.0", "0.1", "1.0", "1.1", "2.fc1", "2.fc2", "3.0", "3.1")
        if block.expand_conv is None:
            layers = (None, None, "0.0", "0.1", "1.fc1", "1.fc2", "2.0", "2.1")
        for theirs, ours in zip(layers, MBConv.LAYERS, strict=True):
            if theirs is not None:
                names[f"features.{stage}.{i}.block.{theirs}"] = f"base_model._blocks.{n}._{ours}"
    head = f"features.{len(backbone.repeats) + 1}"
    names |= {f"{head}.0": "base_model._conv_head", f"{head}.1": "base_model._bn1"}
    return names | {"classifier.1": "new_fc"}
