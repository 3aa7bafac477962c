"""BN-Inception with fusion after each of its ten modules.

Source: Ioffe & Szegedy, "Batch normalization", ICML 2015, as ported from Caffe to PyTorch and published with
AdaFuse: convolutions with bias, pooling in ceil mode, running statistics that keep a tenth of the old.
Fusion as in reference.md, section 3: the policy sees what the module reads.
"""

import functools
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from adafuse_jax.errors import UserError
from adafuse_jax.layers import BatchNorm
from adafuse_jax.models.resnet import conv, per_frame
from adafuse_jax.models.sites import Decider, Deciders
from adafuse_jax.ops import costs, pooling

MOMENTUM = 0.1  # 0.9 in PyTorch's sense


class Widths(NamedTuple):
    """Outputs of a module's convolutions. Without `one` and `pool_proj` the module has stride 2."""

    one: int
    three_reduce: int
    three: int
    double_reduce: int
    double: int  # of both 3x3
    pool_proj: int


MODULES = {
    "3a": Widths(64, 64, 64, 64, 96, 32),
    "3b": Widths(64, 64, 96, 64, 96, 64),
    "3c": Widths(0, 128, 160, 64, 96, 0),
    "4a": Widths(224, 64, 96, 96, 128, 128),
    "4b": Widths(192, 96, 128, 96, 128, 128),
    "4c": Widths(160, 128, 160, 128, 160, 128),
    "4d": Widths(96, 128, 192, 160, 192, 128),
    "4e": Widths(0, 128, 192, 192, 256, 0),
    "5a": Widths(352, 192, 320, 160, 224, 128),
    "5b": Widths(352, 192, 320, 192, 224, 128),
}


class ConvUnit(nnx.Module):
    """Convolution with bias, BatchNorm and ReLU."""

    def __init__(
        self, in_features: int, features: int, kernel: int, stride: int = 1, *, dtype, rngs: nnx.Rngs
    ):
        self.kernel, self.stride, self.features = kernel, stride, features
        self.conv = conv(in_features, features, kernel, stride, dtype, rngs, bias=True)
        self.bn = BatchNorm(features, momentum=MOMENTUM)

    def __call__(self, x: Float[Array, "b t h w i"], train: bool) -> Float[Array, "b t y x o"]:
        return jax.nn.relu(self.bn(per_frame(self.conv, x), train))

    def count(self, hw: tuple[int, int]) -> tuple[int, int, tuple[int, int]]:
        """MACs of the convolution and of its norm, and the output's size."""
        out = tuple(costs.conv_out(s, self.kernel, self.stride, self.kernel // 2) for s in hw)
        macs = costs.conv_macs(self.conv.in_features, self.features, self.kernel, out, bias=True)
        return macs, costs.norm_macs(self.features, out), out


class ModuleCost(NamedTuple):
    """MACs of a frame: of all, by branch as in `SiteCost`, of what reads the input; and the output's size."""

    total: int
    before: tuple[tuple[int, int], ...]
    reading: int
    size: tuple[int, int]


class InceptionModule(nnx.Module):
    """Branches on one input, their outputs side by side: 1x1 | 1x1, 3x3 | 1x1, 3x3, 3x3 | 3x3 pool, 1x1.

    At stride 2 the first branch is missing and the last one is the pool alone. Fusion, if any, comes after.
    """

    def __init__(self, in_features: int, widths: Widths, *, max_pool: bool, dtype, rngs: nnx.Rngs):
        self.in_features = in_features
        self.stride = 1 if widths.one else 2
        self.max_pool = max_pool
        unit = functools.partial(ConvUnit, dtype=dtype, rngs=rngs)
        self.units = nnx.Dict(
            {
                "3x3_reduce": unit(in_features, widths.three_reduce, 1),
                "3x3": unit(widths.three_reduce, widths.three, 3, self.stride),
                "double_3x3_reduce": unit(in_features, widths.double_reduce, 1),
                "double_3x3_1": unit(widths.double_reduce, widths.double, 3),
                "double_3x3_2": unit(widths.double, widths.double, 3, self.stride),
            }
        )
        # The names of each branch's convolutions, those of the pool last.
        self.branches = (("3x3_reduce", "3x3"), ("double_3x3_reduce", "double_3x3_1", "double_3x3_2"), ())
        if self.stride == 1:
            self.units["1x1"] = unit(in_features, widths.one, 1)
            self.units["pool_proj"] = unit(in_features, widths.pool_proj, 1)
            self.branches = (("1x1",), *self.branches[:-1], ("pool_proj",))
        self.features = sum(
            self.units[names[-1]].features if names else in_features for names in self.branches
        )
        self.fusion: Decider | None = nnx.data(None)

    def __call__(
        self, x: Float[Array, "b t h w i"], key: Key[Array, ""] | None, train: bool
    ) -> tuple[Float[Array, "b t y x o"], Float[Array, "b t c actions"] | None]:
        if self.max_pool:
            pool = functools.partial(pooling.max_pool, stride=self.stride, padding=2 - self.stride)
        else:
            pool = pooling.avg_pool
        outs = []
        for names in self.branches:
            out = per_frame(pool, x) if names is self.branches[-1] else x
            for name in names:
                out = self.units[name](out, train)
            outs.append(out)
        out = jnp.concatenate(outs, -1)
        return (out, None) if self.fusion is None else self.fusion(x, out, key, train)

    def count(self, hw: tuple[int, int]) -> ModuleCost:
        """MACs of a frame of size `hw`, without fusion."""
        # As published: an average pool at one an element of its output, a max pool at nothing.
        total = 0 if self.max_pool else self.in_features * hw[0] * hw[1]
        before, reading = [], 0
        for names in self.branches:
            size, channels, macs = hw, self.in_features, 0
            for name in names:
                macs, norm, size = self.units[name].count(size)
                channels = self.units[name].features
                total += macs + norm
                reading += macs if name == names[0] else 0
            before.append((channels, macs))
        return ModuleCost(total, tuple(before), reading, tuple(s // self.stride for s in hw))


class BNInception(nnx.Module):
    """Stem and ten modules; features are averaged over space.

    Args:
        deciders: makes what decides at each fusion site; None: no fusion.
        fusion_stages: some of 3, 4 and 5, whose modules fuse.
        dtype: of the computation; None: the input's. Parameters are float32.
        rngs: for the initial weights.
    """

    def __init__(
        self,
        *,
        deciders: Deciders | None = None,
        fusion_stages: Sequence[int] = (),
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.share_policy = getattr(deciders, "share", False)
        unit = functools.partial(ConvUnit, dtype=dtype, rngs=rngs)
        self.stem = nnx.Dict(
            {
                "conv1_7x7_s2": unit(3, 64, 7, 2),
                "conv2_3x3_reduce": unit(64, 64, 1),
                "conv2_3x3": unit(64, 192, 3),
            }
        )
        self.inception = nnx.Dict()
        in_features = 192
        for name, widths in MODULES.items():
            max_pool = name in ("3c", "4e", "5b")
            module = InceptionModule(in_features, widths, max_pool=max_pool, dtype=dtype, rngs=rngs)
            if deciders is not None and int(name[0]) in fusion_stages:
                module.fusion = deciders(in_features, module.features)
            self.inception[name] = module
            in_features = module.features
        self.features = in_features

    def named_blocks(self) -> list[tuple[str, InceptionModule]]:
        """All modules from input to output, with the names of the published state dicts."""
        return [(f"inception_{name}", self.inception[name]) for name in MODULES]

    def stage_of(self, site: str) -> int:
        """3 of "inception_3a"."""
        return int(site.removeprefix("inception_")[0])

    def __call__(
        self, clip: Float[Array, "b t h w 3"], key: Key[Array, ""] | None = None, train: bool = False
    ) -> tuple[Float[Array, "b t features"], OrderedDict[str, Float[Array, "b t c actions"]]]:
        """Frame features, and the policy of each site.

        Raises:
            UserError: for frames whose branches don't fit together; see `check_size`.
        """
        check_size(clip.shape[2:4])
        x = per_frame(pooling.max_pool, self.stem["conv1_7x7_s2"](clip, train))
        x = self.stem["conv2_3x3"](self.stem["conv2_3x3_reduce"](x, train), train)
        x = per_frame(pooling.max_pool, x)
        policies = OrderedDict()
        for i, (name, module) in enumerate(self.named_blocks()):
            x, policy = module(x, None if key is None else jax.random.fold_in(key, i), train)
            if policy is not None:
                policies[name] = policy
        return x.mean((2, 3)), policies

    def count(self, hw: tuple[int, int]) -> costs.FrameCost:
        """MACs of one frame of `hw` pixels, as the published counter counts them; raises as a call does."""
        check_size(hw)
        total, size = self.features, hw  # the last average pool, at one a feature
        for name in ("conv1_7x7_s2", "conv2_3x3_reduce", "conv2_3x3"):
            macs, norm, size = self.stem[name].count(size)
            total += macs + norm
            if name != "conv2_3x3_reduce":
                size = tuple(pooling.ceil_out(s, 3, 2) for s in size)
        counted = []
        for _, module in self.named_blocks():
            counted.append(module.count(size))
            size = counted[-1].size
        sites = {}
        # What a module skips, the next one need not read; after the last there is none.
        after = [c.reading for c in counted[1:]] + [0]
        for (name, module), cost, reading in zip(self.named_blocks(), counted, after, strict=True):
            total += cost.total
            if module.fusion is not None:
                total += module.fusion.macs
                sites[name] = costs.SiteCost(cost.before, reading)
        return costs.FrameCost(total, sites)


def check_size(hw: Sequence[int]) -> None:
    """Raises UserError unless both modules of stride 2 read even sides.

    Of odd ones ceil mode pools one pixel less than a convolution gives: their outputs don't fit side by side.
    """
    if not all(side >= 31 and (side + 1) % 32 < 8 for side in hw):
        raise UserError(
            f"image: expected sides of 32 n - 1 to 32 n + 6 pixels for BN-Inception, found {hw[0]} x {hw[1]}"
        )
