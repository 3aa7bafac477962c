"""MobileNetV2, the backbone of AR-Net's policy network.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, table 2, as in
torchvision.
"""

from collections import OrderedDict
from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from adafuse_jax.layers import BatchNorm
from adafuse_jax.models.resnet import conv, per_frame
from adafuse_jax.ops import costs

# Expansion, channels, blocks, stride of the first of them.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class ConvNorm(nnx.Module):
    """A convolution and its BatchNorm, with a ReLU6 after them where `relu`."""

    def __init__(
        self,
        in_features: int,
        features: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        depthwise: bool = False,
        relu: bool = True,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.groups = in_features if depthwise else 1
        self.kernel, self.stride, self.relu = kernel, stride, relu
        self.conv = conv(in_features, features, kernel, stride, dtype, rngs, groups=self.groups)
        self.bn = BatchNorm(features)

    def __call__(self, x: Float[Array, "b t h w i"], train: bool) -> Float[Array, "b t y x o"]:
        x = self.bn(per_frame(self.conv, x), train)
        return jax.nn.relu6(x) if self.relu else x

    def count(self, hw: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        """MACs of a frame, and the output's size."""
        size = tuple(costs.conv_out(s, self.kernel, self.stride, self.kernel // 2) for s in hw)
        inputs, features = self.conv.in_features // self.groups, self.conv.out_features
        return costs.conv_macs(inputs, features, self.kernel, size) + costs.norm_macs(features, size), size


class InvertedResidual(nnx.Module):
    """1x1 to `expansion` times the channels (unless 1), depthwise 3x3, linear 1x1; + x where it fits."""

    def __init__(
        self, in_features: int, features: int, stride: int, expansion: int, *, dtype=None, rngs: nnx.Rngs
    ):
        hidden = in_features * expansion
        options = {"dtype": dtype, "rngs": rngs}
        layers = [ConvNorm(in_features, hidden, **options)] if expansion != 1 else []
        layers += [ConvNorm(hidden, hidden, 3, stride, depthwise=True, **options)]
        self.layers = nnx.List([*layers, ConvNorm(hidden, features, relu=False, **options)])
        self.residual = stride == 1 and in_features == features

    def __call__(self, x: Float[Array, "b t h w i"], train: bool) -> Float[Array, "b t y x o"]:
        out = x
        for layer in self.layers:
            out = layer(out, train)
        return out + x if self.residual else out


class MobileNetV2(nnx.Module):
    """Stem of stride 2, stages of inverted residuals, a 1x1 convolution; features are averaged over space.

    Args:
        stages: (expansion, channels, blocks, stride of the first block) of each.
        stem: channels of the first convolution.
        features: of a frame.
        dtype: of the computation; None: the input's.
        rngs: for the initial weights.
    """

    def __init__(
        self,
        stages: Sequence[tuple[int, int, int, int]] = STAGES,
        stem: int = 32,
        features: int = 1280,
        *,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.features = features
        options = {"dtype": dtype, "rngs": rngs}
        self.stem = ConvNorm(3, stem, 3, 2, **options)
        blocks, channels = [], stem
        for expansion, width, count, stride in stages:
            for i in range(count):
                blocks.append(InvertedResidual(channels, width, 1 if i else stride, expansion, **options))
                channels = width
        self.blocks = nnx.List(blocks)
        self.head = ConvNorm(channels, features, **options)

    def __call__(
        self, clip: Float[Array, "b t h w 3"], key: Key[Array, ""] | None = None, train: bool = False
    ) -> tuple[Float[Array, "b t features"], OrderedDict[str, Float[Array, "b t c actions"]]]:
        """Frame features; it has no policies."""
        del key
        x = self.stem(clip, train)
        for block in self.blocks:
            x = block(x, train)
        return self.head(x, train).mean((2, 3)), OrderedDict()

    def count(self, hw: tuple[int, int]) -> costs.FrameCost:
        """MACs of one frame of `hw` pixels, as the published counter counts them."""
        total, size = 0, hw
        for layer in (self.stem, *(layer for block in self.blocks for layer in block.layers), self.head):
            macs, size = layer.count(size)
            total += macs
        return costs.FrameCost(total + costs.pool_macs(self.features, size), {})
