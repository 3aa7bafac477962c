"""EfficientNet with fusion between the expanding and the depthwise convolution of its blocks.

Source: Tan and Le, "EfficientNet: Rethinking model scaling", ICML 2019; sites as in reference.md, section 3.
The AdaFuse paper's code has no EfficientNet: where its sites lie and how wide their policies are is inferred
from the paper's text and parameter counts. Those, 9.26, 12.42, 13.83 and 16.62M for b0 to b3, are the sums
of the policies here (3.959, 4.624, 4.627 and 4.621M: fc0 and fc1 once for each pair of sizes, a BatchNorm a
site) and of Tan and Le's rounded 5.3, 7.8, 9.2 and 12M for nets of 1000 classes. Counted, those nets have
5.289, 7.794, 9.110 and 12.233M; with 174 classes 4.230, 6.736, 7.946 and 10.964M. The paper's costs are Tan
and Le's too: convolutions and classifier alone, at 224, 240, 260 and 300 pixels.
"""

import bisect
import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from adafuse_jax.layers import BatchNorm
from adafuse_jax.models.mbconv import MOMENTUM, MBConv, conv
from adafuse_jax.models.resnet import per_frame
from adafuse_jax.models.sites import Deciders
from adafuse_jax.ops import costs


class Stage(NamedTuple):
    """A row of blocks; channels and repeats before they are scaled, the stride is the first block's."""

    expansion: int
    features: int
    repeats: int
    stride: int
    kernel: int


STAGES = (
    Stage(1, 16, 1, 1, 3),
    Stage(6, 24, 2, 2, 3),
    Stage(6, 40, 2, 2, 5),
    Stage(6, 80, 3, 2, 3),
    Stage(6, 112, 3, 1, 5),
    Stage(6, 192, 4, 2, 5),
    Stage(6, 320, 1, 1, 3),
)


def scaled(features: int, width: float) -> int:
    """The multiple of 8 next to width * features, but not below 90% of it."""
    wanted = features * width
    near = max(8, int(wanted + 4) // 8 * 8)
    return near if near >= 0.9 * wanted else near + 8


class EfficientNet(nnx.Module):
    """Stem, stages of `MBConv` blocks and a 1x1 head; features are averaged over space.

    Args:
        width: multiplies all channels.
        depth: multiplies all repeats, rounded up.
        stages: the blocks.
        head: channels of the head, before they are scaled.
        drop_path: rate at the end of the net, from 0 at its start on linearly; per frame.
        padding: "same" as in the original: so much that a stride-2 convolution's output is half its input
            rounded up, an odd pixel of it below and on the right. "torch", for weights of torchvision: half
            the kernel on both sides. Sizes are the same.
        bn_epsilon: of all norms; torchvision's weights of b0 to b4 want 1e-5.
        deciders: makes what decides at each fusion site; None: no fusion.
        fusion_stages: 1-based stages whose blocks fuse. Blocks without expansion never do.
        dtype: of the computation; None: the input's. Parameters are float32.
        rngs: for the initial weights.
    """

    def __init__(
        self,
        width: float = 1.0,
        depth: float = 1.0,
        *,
        stages: Sequence[Stage] = STAGES,
        head: int = 1280,
        drop_path: float = 0.2,
        padding: str = "same",
        bn_epsilon: float = 1e-3,
        deciders: Deciders | None = None,
        fusion_stages: Sequence[int] = (),
        dtype=None,
        rngs: nnx.Rngs,
    ):
        in_features = scaled(32, width)
        self.conv_stem = conv(3, in_features, 3, 2, padding, dtype=dtype, rngs=rngs)
        self.bn0 = BatchNorm(in_features, momentum=MOMENTUM, epsilon=bn_epsilon)
        self.share_policy = getattr(deciders, "share", False)
        repeats = [math.ceil(stage.repeats * depth) for stage in stages]
        made = []
        for number, (stage, count) in enumerate(zip(stages, repeats, strict=True), 1):
            for i in range(count):
                block = MBConv(
                    in_features,
                    scaled(stage.features, width),
                    expansion=stage.expansion,
                    kernel=stage.kernel,
                    stride=stage.stride if i == 0 else 1,
                    drop_rate=drop_path * len(made) / sum(repeats),
                    padding=padding,
                    bn_epsilon=bn_epsilon,
                    dtype=dtype,
                    rngs=rngs,
                )
                if deciders is not None and number in fusion_stages and stage.expansion != 1:
                    block.fusion = deciders(in_features, block.expanded)
                made.append(block)
                in_features = block.features
        self.blocks, self.repeats = nnx.List(made), tuple(repeats)
        self.features = scaled(head, width)
        self.conv_head = conv(in_features, self.features, 1, 1, padding, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(self.features, momentum=MOMENTUM, epsilon=bn_epsilon)

    def named_blocks(self) -> list[tuple[str, MBConv]]:
        """All blocks from input to output."""
        return [(f"blocks.{i}", block) for i, block in enumerate(self.blocks)]

    def stage_of(self, site: str) -> int:
        """The stage, from 1, of "blocks.5"."""
        return bisect.bisect(list(itertools.accumulate(self.repeats)), int(site.removeprefix("blocks."))) + 1

    def __call__(
        self, clip: Float[Array, "b t h w 3"], key: Key[Array, ""] | None = None, train: bool = False
    ) -> tuple[Float[Array, "b t features"], OrderedDict[str, Float[Array, "b t c actions"]]]:
        """Frame features, and the policy of each site. Without a key no residual branch is left out."""
        x = jax.nn.silu(self.bn0(per_frame(self.conv_stem, clip), train))
        policies = OrderedDict()
        for i, (name, block) in enumerate(self.named_blocks()):
            # Site i has the key it has in every backbone; the numbers after the sites' are left for dropping.
            site_key, drop_key = None, None
            if key is not None:
                site_key = jax.random.fold_in(key, i)
                drop_key = jax.random.fold_in(key, len(self.blocks) + i) if train else None
            x, policy = block(x, site_key, drop_key, train)
            if policy is not None:
                policies[name] = policy
        x = jax.nn.silu(self.bn1(per_frame(self.conv_head, x), train))
        return x.mean((2, 3)), policies

    def count(self, hw: tuple[int, int]) -> costs.FrameCost:
        """MACs of one frame of `hw` pixels, by the rules of the published counter.

        Swish, the pooling of squeeze and excitation and its product are free, as ReLU and additions are.
        """
        size = tuple(costs.conv_out(s, 3, 2, 1) for s in hw)
        stem = self.conv_stem.out_features
        total, sites = costs.conv_macs(3, stem, 3, size) + costs.norm_macs(stem, size), {}
        for name, block in self.named_blocks():
            macs, site, size = block.count(size)
            total += macs
            if site is not None:
                sites[name] = site
        total += costs.conv_macs(self.conv_head.in_features, self.features, 1, size)
        total += costs.norm_macs(self.features, size) + costs.pool_macs(self.features, size)
        return costs.FrameCost(total, sites)
