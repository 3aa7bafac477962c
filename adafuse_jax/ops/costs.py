"""Multiply-adds: of layers as the published counter counts them, and what a policy saves (Eqs. 4 and 5)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from adafuse_jax.ops import actions as act
from adafuse_jax.ops import resolution


class SiteCost(NamedTuple):
    """What a fusion site can save, in MACs per frame.

    `before` holds (channels, MACs) of each convolution whose outputs are fused, in channel order: one
    for a ResNet block, one a branch for an Inception module. `after` is the cost of reading the fused map.
    """

    before: tuple[tuple[int, int], ...]
    after: int

    @property
    def channels(self) -> int:
        """Decisions of a frame."""
        return sum(channels for channels, _ in self.before)


class ChoiceCost(NamedTuple):
    """What one choice a frame can save (AR-Net), in MACs per frame.

    `spent` is the cost of each action beside `policy`, that of the policy network; the first action's is the
    dense cost's. `lengths` says how many frames each action answers for; the policy network runs once.
    """

    spent: tuple[int, ...]
    policy: int
    lengths: tuple[int, ...]
    channels: int = 1


class FrameCost(NamedTuple):
    """MACs of one frame through a whole net, policies included, and the sites' shares of it in order.

    `published` is what the published code takes for `dense` where it doesn't count, for 224x224 pixels.
    """

    dense: int
    sites: dict[str, SiteCost | ChoiceCost]
    published: int | None = None


def conv_macs(in_features: int, features: int, kernel: int, out_hw: tuple[int, int], bias=False) -> int:
    """Eq. 4: c' h' w' (k k c + 1), the 1 only with a bias."""
    return features * out_hw[0] * out_hw[1] * (kernel * kernel * in_features + int(bias))


def norm_macs(features: int, hw: tuple[int, int] = (1, 1)) -> int:
    """Two an element."""
    return 2 * features * hw[0] * hw[1]


def linear_macs(in_features: int, features: int) -> int:
    """As published: multiplications and additions both count."""
    return 2 * in_features * features


def pool_macs(features: int, hw: tuple[int, int]) -> int:
    """Global average pooling: the additions and one division a channel."""
    return features * (hw[0] * hw[1] + 1)


def conv_out(size: int, kernel: int, stride: int, padding: int) -> int:
    """Side of a convolution's or pooling's output."""
    return (size + 2 * padding - kernel) // stride + 1


def computed_elsewhere(
    policy: Float[Array, "*b t c actions"], actions: Sequence[str], published: bool = False
) -> Float[Array, "*b t c"]:
    """`up`: 1 where conv1's channel isn't needed: neither kept at t nor reused at t+1 (Eq. 5).

    At the last frame nothing can be reused later: up = 1 - keep. The published code takes the keep of
    the frame before instead (reference.md, section 3); `published=True` does the same, for T > 1.
    """
    dropped = 1 - act.chosen(policy, actions, "keep")
    if published and policy.shape[-3] > 1:
        dropped = jnp.concatenate([dropped[..., :-1, :], dropped[..., -2:-1, :]], -2)
    reuse = act.chosen(policy, actions, "reuse")
    later = jnp.concatenate([reuse[..., 1:, :], jnp.zeros_like(reuse[..., :1, :])], -2)
    return dropped * (1 - later)


def savings(
    policy: Float[Array, "*b t c actions"],
    cost: SiteCost | ChoiceCost,
    actions: Sequence[str] = act.ALL,
    published: bool = False,
) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    """MACs per frame (mean over the clip's frames) saved before and after a site, per clip.

    Differentiable in the policy. Eq. 5, over the channels of each convolution before the site:
    mean(up) * before + mean(skip) * after. What a `ChoiceCost` saves counts as after the site.
    """
    if isinstance(cost, ChoiceCost):
        return 0.0, _saved_by_choices(policy[..., 0, :], cost, published)
    up = computed_elsewhere(policy, actions, published)
    saved_before, start = 0.0, 0
    for channels, macs in cost.before:
        saved_before += up[..., start : start + channels].mean((-2, -1)) * float(macs)
        start += channels
    skip = act.chosen(policy, actions, "skip")
    return saved_before, skip.mean((-2, -1)) * float(cost.after)


def _saved_by_choices(
    choices: Float[Array, "b t actions"], cost: ChoiceCost, published: bool
) -> Float[Array, " b"]:
    # As published, every frame that a choice of length k answers for takes 1/k of the policy network, even
    # where the clip ends before it does.
    asked = (
        choices @ (1 / jnp.asarray(cost.lengths)) if published else resolution.asked(choices, cost.lengths)
    )
    spent = (choices @ jnp.asarray(cost.spent, jnp.float32)).mean(-1) + asked.mean(-1) * float(cost.policy)
    return float(cost.spent[0] + cost.policy) - spent


def expected(frame: FrameCost, shares: Sequence[float], num_frames: int = 8) -> float:
    """MACs per clip, on average, where every channel of every frame draws its action for itself (Eq. 5).

    Args:
        frame: cost of the net and its sites.
        shares: of skip, reuse and keep, at every site.
        num_frames: T.
    """
    skip, reuse, keep = shares
    # At the last frame nothing is reused later.
    unneeded = (1 - keep) * (1 - reuse * (num_frames - 1) / num_frames)
    saved = sum(
        unneeded * sum(macs for _, macs in site.before) + skip * site.after for site in frame.sites.values()
    )
    return (frame.dense - saved) * num_frames
