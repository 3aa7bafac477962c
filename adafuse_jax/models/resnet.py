"""ResNet with fusion between the first and second convolution of each residual block.

Source: He et al., "Deep residual learning", CVPR 2016, in torchvision's variant v1.5 (the stride of a
bottleneck on its 3x3); fusion as in the paper's section 3 and reference.md, section 3.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from adafuse_jax.kernels.conv import conv as convolve
from adafuse_jax.layers import BatchNorm, normal
from adafuse_jax.models.gated_conv import PUBLISHED_MACS, GatedConv
from adafuse_jax.models.sites import Decider, Deciders
from adafuse_jax.ops import costs
from adafuse_jax.ops.pooling import max_pool
from adafuse_jax.ops.shift import online_shift, temporal_shift

SHIFTS = {None: None, "tsm": temporal_shift, "online": online_shift}


@dataclasses.dataclass(frozen=True)
class Stem:
    """First convolution (stride 2), and whether a 3x3 max pool of stride 2 follows."""

    features: int = 64
    kernel: int = 7
    max_pool: bool = True


def conv(
    in_features: int,
    features: int,
    kernel: int,
    stride: int,
    dtype,
    rngs: nnx.Rngs,
    bias: bool = False,
    groups: int = 1,
) -> nnx.Conv:
    """A convolution, padded by half its kernel on both sides as in PyTorch."""
    return nnx.Conv(
        in_features,
        features,
        (kernel, kernel),
        stride,
        padding=((kernel // 2, kernel // 2),) * 2,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=normal((2 / (kernel * kernel * features)) ** 0.5),  # He et al. 2015, fan out
        dtype=dtype,
        conv_general_dilated=convolve,
        rngs=rngs,
    )


class ResidualBlock(nnx.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 where `bottleneck`; fusion, if any, after the first.

    `shift_shortcut` says which x a downsampling shortcut reads: the shifted one in the fusion networks,
    the unshifted one in plain TSM. A shortcut without downsampling is never shifted. With `partitions` the
    first convolution is gated.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        stride: int,
        *,
        bottleneck: bool,
        stride_in_1x1: bool,
        shift: str | None,
        shift_shortcut: bool,
        partitions: int | None = None,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.in_features, self.width = in_features, width
        self.features = width * 4 if bottleneck else width
        self.shift, self.shift_shortcut = shift, shift_shortcut
        if bottleneck:
            strides = (stride, 1, 1) if stride_in_1x1 else (1, stride, 1)
            kernels = (1, 3, 1)
        else:
            strides, kernels = (stride, 1), (3, 3)
        self.geometry = tuple(zip(kernels, strides, strict=True))
        self.stride = stride
        outputs = (width, width, self.features)[: len(kernels)]
        sizes = zip((in_features, width, width), outputs, kernels, strides, strict=False)
        for i, (i_in, i_out, kernel, i_stride) in enumerate(sizes, 1):
            setattr(self, f"conv{i}", conv(i_in, i_out, kernel, i_stride, dtype, rngs))
            setattr(self, f"bn{i}", BatchNorm(i_out))
        self.downsample_conv, self.downsample_bn = nnx.data(None), nnx.data(None)
        self.downsamples = stride != 1 or in_features != self.features
        if self.downsamples:
            self.downsample_conv = conv(in_features, self.features, 1, stride, dtype, rngs)
            self.downsample_bn = BatchNorm(self.features)
        if partitions is not None:
            self.conv1 = GatedConv(self.conv1, partitions)
        self.fusion: Decider | None = nnx.data(None)
        # What a stream, which has one frame at a time, puts in place of the shift over a clip.
        self.shifter: nnx.Module | None = nnx.data(None)
        # What compact execution puts in place of `convolved`, or, on a GPU, of `pair`.
        self.executed: nnx.Module | None = nnx.data(None)
        self.paired: nnx.Module | None = nnx.data(None)

    def __call__(
        self, x: Float[Array, "b t h w i"], key: Key[Array, ""] | None, train: bool
    ) -> tuple[Float[Array, "b t y x o"], Float[Array, "b t c actions"] | None]:
        shifted = x if self.shift is None else (self.shifter or SHIFTS[self.shift])(x)
        shortcut = shifted if self.downsamples and self.shift_shortcut else x
        return (self.executed or self.convolved)(shifted, shortcut, key, train)

    def convolved(
        self,
        x: Float[Array, "b t h w i"],
        shortcut: Float[Array, "b t h w i"],
        key: Key[Array, ""] | None,
        train: bool,
    ) -> tuple[Float[Array, "b t y x o"], Float[Array, "b t c actions"] | None]:
        """The block of what its convolutions and its shortcut read."""
        out, policy = (self.paired or self.pair)(x, key, train)
        if len(self.geometry) == 3:
            out = self.bn3(per_frame(self.conv3, jax.nn.relu(out)), train)
        if self.downsamples:
            shortcut = self.downsample_bn(per_frame(self.downsample_conv, shortcut), train)
        return jax.nn.relu(out + shortcut), policy

    def pair(
        self, x: Float[Array, "b t h w i"], key: Key[Array, ""] | None, train: bool
    ) -> tuple[Float[Array, "b t y x m"], Float[Array, "b t c actions"] | None]:
        """The first two convolutions with their norms, and the fusion between them."""
        policy = None
        if isinstance(self.conv1, GatedConv):
            out, policy = self.conv1(x, train)
        else:
            out = per_frame(self.conv1, x)
        out = jax.nn.relu(self.bn1(out, train))
        if self.fusion is not None:
            out, policy = self.fusion(x, out, key, train)
        return self.bn2(per_frame(self.conv2, out), train), policy

    def count(self, hw: tuple[int, int]) -> tuple[int, costs.SiteCost | None, tuple[int, int]]:
        """MACs of a frame, what the site can save of them, and the output's size."""
        total, convs, size = 0, [], hw
        inputs = (self.in_features, self.width, self.width)
        outputs = (self.width, self.width, self.features)[: len(self.geometry)]
        for (kernel, stride), i_in, i_out in zip(self.geometry, inputs, outputs, strict=False):
            size = tuple(costs.conv_out(s, kernel, stride, kernel // 2) for s in size)
            convs.append(costs.conv_macs(i_in, i_out, kernel, size))
            total += convs[-1] + costs.norm_macs(i_out, size)
        if self.downsamples:
            total += costs.conv_macs(self.in_features, self.features, 1, size)
            total += costs.norm_macs(self.features, size)
        if isinstance(self.conv1, GatedConv):
            # A closed gate saves at this convolution alone. Its norm is free, as published.
            return total, costs.SiteCost(((self.width, 0),), self.conv1.saved(convs[0])), size
        if self.fusion is None:
            return total, None, size
        return total + self.fusion.macs, costs.SiteCost(((self.width, convs[0]),), convs[1]), size


class ResNet(nnx.Module):
    """Stem and four (or fewer) stages of residual blocks; features are averaged over space.

    Args:
        blocks: residual blocks of each stage.
        widths: channels of each stage (before a bottleneck's fourfold expansion).
        bottleneck: 1x1-3x3-1x1 blocks.
        stride_in_1x1: v1 of the bottleneck, with the stride in the first 1x1 (v1.5: in the 3x3).
        stem: the first layers.
        shift: None, "tsm" (bidirectional, as published) or "online" (causal).
        shift_every: shift before every such block of a stage, the first among them.
        shift_shortcut: see `ResidualBlock`.
        deciders: makes what decides at each fusion site; None: no fusion.
        fusion_stages: 1-based stages whose blocks fuse.
        partitions: of the gated first convolution of every block (CGNet); None: plain convolutions.
        dtype: of the computation; None: the input's. Parameters are float32.
        rngs: for the initial weights.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        *,
        bottleneck: bool = False,
        stride_in_1x1: bool = False,
        stem: Stem = Stem(),
        shift: str | None = None,
        shift_every: int = 1,
        shift_shortcut: bool = False,
        deciders: Deciders | None = None,
        fusion_stages: Sequence[int] = (),
        partitions: int | None = None,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.stem = stem
        self.conv1 = conv(3, stem.features, stem.kernel, 2, dtype, rngs)
        self.bn1 = BatchNorm(stem.features)
        # What compact execution puts in place of `entry`.
        self.executed: nnx.Module | None = nnx.data(None)
        self.num_stages = len(blocks)
        self.share_policy = getattr(deciders, "share", False)
        in_features = stem.features
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
            made = []
            for i in range(count):
                block = ResidualBlock(
                    in_features,
                    width,
                    2 if i == 0 and stage > 1 else 1,
                    bottleneck=bottleneck,
                    stride_in_1x1=stride_in_1x1,
                    shift=shift if i % shift_every == 0 else None,
                    shift_shortcut=shift_shortcut,
                    partitions=partitions,
                    dtype=dtype,
                    rngs=rngs,
                )
                if deciders is not None and stage in fusion_stages:
                    block.fusion = deciders(in_features, width)
                made.append(block)
                in_features = block.features
            setattr(self, f"layer{stage}", nnx.List(made))
        self.features = in_features

    def named_blocks(self) -> list[tuple[str, ResidualBlock]]:
        """All blocks from input to output, with the names of the published state dicts."""
        stages = range(1, self.num_stages + 1)
        return [(f"layer{s}.{i}", b) for s in stages for i, b in enumerate(getattr(self, f"layer{s}"))]

    def stage_of(self, site: str) -> int:
        """2 of "layer2.1"."""
        return int(site.removeprefix("layer").split(".")[0])

    def __call__(
        self, clip: Float[Array, "b t h w 3"], key: Key[Array, ""] | None = None, train: bool = False
    ) -> tuple[Float[Array, "b t features"], OrderedDict[str, Float[Array, "b t c actions"]]]:
        """Frame features, and the policy of each site."""
        x = (self.executed or self.entry)(clip, train)
        policies = OrderedDict()
        for i, (name, block) in enumerate(self.named_blocks()):
            site_key = None if key is None else jax.random.fold_in(key, i)
            x, policy = block(x, site_key, train)
            if policy is not None:
                policies[name] = policy
        return x.mean((2, 3)), policies

    def entry(self, clip: Float[Array, "b t h w 3"], train: bool) -> Float[Array, "b t y x c"]:
        """The first layers."""
        x = jax.nn.relu(self.bn1(per_frame(self.conv1, clip), train))
        return per_frame(lambda f: max_pool(f, padding=1, ceil=False), x) if self.stem.max_pool else x

    def count(self, hw: tuple[int, int]) -> costs.FrameCost:
        """MACs of one frame of `hw` pixels, as the published counter counts them."""
        stem = self.stem
        size = tuple(costs.conv_out(s, stem.kernel, 2, stem.kernel // 2) for s in hw)
        total = costs.conv_macs(3, stem.features, stem.kernel, size) + costs.norm_macs(stem.features, size)
        if stem.max_pool:
            size = tuple(costs.conv_out(s, 3, 2, 1) for s in size)
        sites = {}
        for name, block in self.named_blocks():
            macs, site, size = block.count(size)
            total += macs
            if site is not None:
                sites[name] = site
        total += costs.pool_macs(self.features, size)
        gated = isinstance(block.conv1, GatedConv)
        return costs.FrameCost(total, sites, PUBLISHED_MACS.get(len(sites)) if gated else None)


def per_frame(function, x: Float[Array, "b t h w i"]) -> Float[Array, "b t y x o"]:
    """Applies a 2D layer to every frame."""
    out = function(x.reshape(-1, *x.shape[2:]))
    return out.reshape(*x.shape[:2], *out.shape[1:])
