"""The published PyTorch names of our parameters.

The names are those of torchvision's ResNet, of Cadene's BN-Inception or of EfficientNet-PyTorch under
`base_model.`, of `new_fc` for the classifier, and of the reference's policy networks (the golden cases' JSON
lists them).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from flax import nnx

from adafuse_jax.layers import BatchNorm, TemporalFusion
from adafuse_jax.models.arnet import ARNet
from adafuse_jax.models.efficientnet import EfficientNet
from adafuse_jax.models.gated_conv import GatedConv
from adafuse_jax.models.inception import BNInception, ConvUnit
from adafuse_jax.models.lstm import LSTM
from adafuse_jax.models.mbconv import MBConv
from adafuse_jax.models.mobilenet import MobileNetV2
from adafuse_jax.models.recognizer import Recognizer
from adafuse_jax.models.resnet import ResNet

# What PyTorch saves beside a variable of this name and a model here need not know.
CONSTANTS = {"running_mean": "num_batches_tracked", "threshold": "mask"}


class Entry(NamedTuple):
    """One variable of ours, and the names under which a state dict holds it (all of them equal)."""

    names: tuple[str, ...]
    variable: nnx.Variable


def canonical(key: str) -> str:
    """One spelling for each of the spellings in which released checkpoints name a parameter."""
    key = key.removeprefix("module.").replace(".conv1.net.", ".conv1.")
    return re.sub(r"\.downsample\.?([01])\.", r".downsample\1.", key)


def entries(model: Recognizer | ARNet) -> Iterator[Entry]:
    """All variables of a model with their published names, in the canonical spelling."""
    if isinstance(model, ARNet):
        yield from _arnet(model)
        return
    yield from _BACKBONES[type(model.backbone)](model.backbone)
    if model.rnn is not None:
        yield from _lstm(model.rnn)
    yield from _module("new_fc", model.fc)
    if model.relations is not None:
        for i, layers in enumerate(zip(model.relations.fc0, model.relations.fc1, strict=True)):
            for place, linear in zip((1, 3), layers, strict=True):
                yield from _module(f"consensus.fc_fusion_scales.{i}.{place}", linear)


def _arnet(model: ARNet) -> Iterator[Entry]:
    for i, backbone in enumerate(model.backbones):
        yield from _resnet(backbone, f"base_model_list.{i}")
    yield from _mobilenet(model.glance, "lite_backbone")
    yield from _lstm(model.rnn)
    yield from _module("linear", model.decide)
    for i, head in enumerate(model.heads):
        yield from _module("lite_fc" if i == len(model.backbones) else f"new_fc_list.{i}", head)


def _lstm(rnn: LSTM) -> Iterator[Entry]:
    names = {"weight_ih": "kernel_x", "weight_hh": "kernel_h", "bias_ih": "bias_x", "bias_hh": "bias_h"}
    for theirs, ours in names.items():
        yield Entry((f"rnn.{theirs}",), getattr(rnn, ours))


def _mobilenet(backbone: MobileNetV2, root: str) -> Iterator[Entry]:
    """Names of torchvision since 0.3; before, `conv.3` and the like counted the activations too."""
    layers = [("0", backbone.stem), (str(len(backbone.blocks) + 1), backbone.head)]
    for i, block in enumerate(backbone.blocks, 1):
        *first, last = block.layers
        layers += [(f"{i}.conv.{j}", layer) for j, layer in enumerate(first)]
        yield from _module(f"{root}.features.{i}.conv.{len(first)}", last.conv)
        yield from _module(f"{root}.features.{i}.conv.{len(first) + 1}", last.bn)
    for name, layer in layers:
        yield from _module(f"{root}.features.{name}.0", layer.conv)
        yield from _module(f"{root}.features.{name}.1", layer.bn)


def _resnet(backbone: ResNet, root: str = "base_model") -> Iterator[Entry]:
    yield from _module(f"{root}.conv1", backbone.conv1)
    yield from _module(f"{root}.bn1", backbone.bn1)
    policies = {}
    for name, block in backbone.named_blocks():
        for i in range(1, len(block.geometry) + 1):
            yield from _conv(f"{root}.{name}.conv{i}", getattr(block, f"conv{i}"))
            yield from _module(f"{root}.{name}.bn{i}", getattr(block, f"bn{i}"))
        if block.downsample_conv is not None:
            yield from _module(f"{root}.{name}.downsample0", block.downsample_conv)
            yield from _module(f"{root}.{name}.downsample1", block.downsample_bn)
        policies[f"{root}.{name}.policy_net."] = block.fusion
    yield from _policies(policies, backbone.share_policy)


def _inception(backbone: BNInception) -> Iterator[Entry]:
    def unit(name: str, made: ConvUnit) -> Iterator[Entry]:
        yield from _module(f"base_model.{name}", made.conv)
        yield from _module(f"base_model.{name}_bn", made.bn)

    for name, made in backbone.stem.items():
        yield from unit(name, made)
    policies = {}
    for name, module in backbone.named_blocks():
        for part, made in module.units.items():
            yield from unit(f"{name}_{part}", made)
        policies[f"base_model.{name.replace('inception', 'policy_net')}."] = module.fusion
    yield from _policies(policies, backbone.share_policy)


def _efficientnet(backbone: EfficientNet) -> Iterator[Entry]:
    """The names of EfficientNet-PyTorch (L. Melas-Kyriazi), the net on which AR-Net's code is built.

    Nobody published AdaFuse on EfficientNet: the names of its policies are those of the ResNets.
    """
    for ours in ("conv_stem", "bn0"):
        yield from _module(f"base_model._{ours}", getattr(backbone, ours))
    policies = {}
    for i, block in enumerate(backbone.blocks):
        prefix = f"base_model._blocks.{i}."
        for ours in MBConv.LAYERS:
            if getattr(block, ours) is not None:
                yield from _module(f"{prefix}_{ours}", getattr(block, ours))
        policies[f"{prefix}policy_net."] = block.fusion
    for ours in ("conv_head", "bn1"):
        yield from _module(f"base_model._{ours}", getattr(backbone, ours))
    yield from _policies(policies, backbone.share_policy)


# How a backbone's variables are called.
_BACKBONES = {ResNet: _resnet, BNInception: _inception, EfficientNet: _efficientnet}


def _conv(name: str, conv: nnx.Conv | GatedConv) -> Iterator[Entry]:
    if isinstance(conv, GatedConv):
        yield from _module(name, conv.conv)
        yield from _module(f"{name}.bn", conv.bn)
        yield Entry((f"{name}.threshold",), conv.threshold)
    else:
        yield from _module(name, conv)


def _policies(policies: Mapping[str, Any], share: bool) -> Iterator[Entry]:
    """The policy networks of {prefix of names: decider of a site}, shared ones under all their names."""
    fusions = {name: site for name, site in policies.items() if isinstance(site, TemporalFusion)}
    for name, fusion in fusions.items():
        yield from _module(name + "gate_bn", fusion.bn)
        sharing = [other for other, site in fusions.items() if site.fc0 is fusion.fc0]
        if sharing[0] != name:
            continue  # an earlier site gave the shared fc0 and fc1 already
        size = f"{fusion.fc0.in_features}_{fusion.fc1.out_features}"
        for fc, linear in (("fc0", fusion.fc0), ("fc1", fusion.fc1)):
            own = [f"{site}gate_{fc}" for site in sharing]
            yield from _module(([f"base_model.gate_{fc}s.{size}"] if share else []) + own, linear)


def _module(names: str | list[str], module: nnx.Module) -> Iterator[Entry]:
    """The variables of a convolution, linear layer or BatchNorm under PyTorch's names for them."""
    names = [names] if isinstance(names, str) else names
    if isinstance(module, BatchNorm):
        parts = {
            "weight": module.scale,
            "bias": module.bias,
            "running_mean": module.mean,
            "running_var": module.var,
        }
    else:
        parts = {"weight": module.kernel, "bias": module.bias}
    for part, variable in parts.items():
        if variable is not None:
            yield Entry(tuple(f"{name}.{part}" for name in names), variable)


def torch_shape(name: str, variable: nnx.Variable) -> tuple[int, ...]:
    """The shape under which PyTorch holds a variable."""
    shape = variable.shape
    if name.endswith(".threshold"):
        return (1, *shape, 1, 1)
    return (shape[-1], shape[-2], *shape[:-2]) if len(shape) >= 2 else shape
