"""The block of EfficientNet, with fusion between its expanding and its depthwise convolution.

Source: Tan and Le, "EfficientNet: Rethinking model scaling", ICML 2019; sites as in reference.md, section 3.
"""

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from adafuse_jax.kernels.conv import conv as convolve
from adafuse_jax.layers import BatchNorm, normal
from adafuse_jax.models.resnet import per_frame
from adafuse_jax.models.sites import Decider
from adafuse_jax.ops import costs
from adafuse_jax.ops.drop_path import drop_path

PADDINGS = ("same", "torch")
MOMENTUM = 0.99


def conv(
    in_features: int,
    features: int,
    kernel: int,
    stride: int,
    padding: str,
    *,
    groups: int = 1,
    bias: bool = False,
    dtype,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution; `padding` as in `EfficientNet`."""
    return nnx.Conv(
        in_features,
        features,
        (kernel, kernel),
        stride,
        padding="SAME" if padding == "same" else ((kernel // 2, kernel // 2),) * 2,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=normal((2 / (kernel * kernel * features / groups)) ** 0.5),  # He et al. 2015, fan out
        dtype=dtype,
        conv_general_dilated=convolve,
        rngs=rngs,
    )


class MBConv(nnx.Module):
    """1x1 expansion, depthwise convolution, squeeze and excitation, 1x1 projection; shortcut if it fits.

    Fusion, if any, comes after the expansion with its norm and swish: the policy sees the block's input, the
    depthwise convolution reads the fused map. A skipped channel is zero there, but not beyond: the
    depthwise convolution's norm has a bias. So of what comes after the site a skip saves the depthwise
    convolution alone.

    Without expansion (`expansion` 1) there is no first convolution. `drop_rate` is the share of the frames
    whose residual branch training leaves out. The other arguments are `EfficientNet`'s.
    """

    # In the order of the computation; the first two are None without expansion.
    LAYERS = (
        "expand_conv",
        "bn0",
        "depthwise_conv",
        "bn1",
        "se_reduce",
        "se_expand",
        "project_conv",
        "bn2",
    )

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        expansion: int,
        kernel: int,
        stride: int,
        drop_rate: float,
        padding: str,
        bn_epsilon: float,
        dtype,
        rngs: nnx.Rngs,
    ):
        expanded, squeezed = expansion * in_features, max(1, in_features // 4)
        self.in_features, self.expanded, self.features = in_features, expanded, features
        self.squeezed, self.expansion, self.kernel, self.stride = squeezed, expansion, kernel, stride
        self.drop_rate = drop_rate

        def make(i_in, i_out, kernel=1, stride=1, **options):
            return conv(i_in, i_out, kernel, stride, padding, **options, dtype=dtype, rngs=rngs)

        self.expand_conv, self.bn0 = nnx.data(None), nnx.data(None)
        if expansion != 1:
            self.expand_conv = make(in_features, expanded)
            self.bn0 = BatchNorm(expanded, momentum=MOMENTUM, epsilon=bn_epsilon)
        self.depthwise_conv = make(expanded, expanded, kernel, stride, groups=expanded)
        self.bn1 = BatchNorm(expanded, momentum=MOMENTUM, epsilon=bn_epsilon)
        self.se_reduce = make(expanded, squeezed, bias=True)
        self.se_expand = make(squeezed, expanded, bias=True)
        self.project_conv = make(expanded, features)
        self.bn2 = BatchNorm(features, momentum=MOMENTUM, epsilon=bn_epsilon)
        self.fusion: Decider | None = nnx.data(None)

    def __call__(
        self,
        x: Float[Array, "b t h w i"],
        key: Key[Array, ""] | None,
        drop_key: Key[Array, ""] | None,
        train: bool,
    ) -> tuple[Float[Array, "b t y x o"], Float[Array, "b t c actions"] | None]:
        """`key` is the policy's; without `drop_key` no branch is left out."""
        out, policy = x, None
        if self.expand_conv is not None:
            out = jax.nn.silu(self.bn0(per_frame(self.expand_conv, x), train))
        if self.fusion is not None:
            out, policy = self.fusion(x, out, key, train)
        out = jax.nn.silu(self.bn1(per_frame(self.depthwise_conv, out), train))
        out = out * self.excitation(out)
        out = self.bn2(per_frame(self.project_conv, out), train)
        if self.stride == 1 and self.in_features == self.features:
            if drop_key is not None and self.drop_rate:
                out = drop_path(out, drop_key, self.drop_rate)
            out = out + x
        return out, policy

    def excitation(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t 1 1 c"]:
        """Squeeze and excitation (Hu et al., CVPR 2018): a factor for each channel of each frame."""
        squeezed = jax.nn.silu(per_frame(self.se_reduce, x.mean((2, 3), keepdims=True)))
        return jax.nn.sigmoid(per_frame(self.se_expand, squeezed))

    def count(self, hw: tuple[int, int]) -> tuple[int, costs.SiteCost | None, tuple[int, int]]:
        """MACs of a frame, what the site can save of them, and the output's size."""
        expanded, size = (
            self.expanded,
            tuple(costs.conv_out(s, self.kernel, self.stride, self.kernel // 2) for s in hw),
        )
        expand = costs.conv_macs(self.in_features, expanded, 1, hw) if self.expansion != 1 else 0
        depthwise = costs.conv_macs(1, expanded, self.kernel, size)
        total = expand + depthwise + costs.norm_macs(expanded, size)
        if expand:
            total += costs.norm_macs(expanded, hw)
        total += costs.conv_macs(expanded, self.squeezed, 1, (1, 1), bias=True)
        total += costs.conv_macs(self.squeezed, expanded, 1, (1, 1), bias=True)
        total += costs.conv_macs(expanded, self.features, 1, size) + costs.norm_macs(self.features, size)
        if self.fusion is None:
            return total, None, size
        return total + self.fusion.macs, costs.SiteCost(((expanded, expand),), depthwise), size
