"""What decides at the sites of a backbone: AdaFuse's policy networks, and the paper's baselines without any.

A backbone asks a factory for the decider of each of its sites, in order; a decider is called as
`TemporalFusion` is, on what the site's convolution read and what it gave.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from adafuse_jax.errors import UserError
from adafuse_jax.layers import TemporalFusion
from adafuse_jax.ops import actions as act
from adafuse_jax.ops import costs, fusion, policy


class Decider(Protocol):
    """A site's module; `actions` are what it chooses from, `macs` what choosing costs a frame."""

    actions: tuple[str, ...]

    @property
    def macs(self) -> int: ...

    def __call__(
        self,
        x: Float[Array, "b t *s i"],
        y: Float[Array, "b t *z c"],
        key: Key[Array, ""] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "b t *z c"], Float[Array, "b t c actions"]]: ...


# Given the channels of x and y, makes the decider of the next site.
Deciders = Callable[[int, int], Decider]


class PolicyNetworks:
    """Makes a `TemporalFusion` for each site.

    Args:
        hidden: width of the policy networks, or
        hidden_quota: that divided by a site's channels gives the width.
        share: sites of equal (in, out) channels share fc0 and fc1.
        rngs: for the initial weights.
        **options: further keywords of every `TemporalFusion`.
    """

    def __init__(
        self,
        *,
        hidden: int | None = None,
        hidden_quota: int | None = None,
        share: bool = True,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        self._hidden, self._quota, self.share = hidden, hidden_quota, share
        self._rngs, self._options = rngs, options
        self._first: dict[tuple[int, int], TemporalFusion] = {}

    def __call__(self, in_features: int, features: int) -> TemporalFusion:
        """The next site's; `share_with` of an earlier one where they share."""
        made = TemporalFusion(
            in_features,
            features,
            hidden=self._hidden or self._quota // features,
            share_with=self._first.get((in_features, features)),
            rngs=self._rngs,
            **self._options,
        )
        if self.share:
            self._first.setdefault((in_features, features), made)
        return made


class RandomPolicy(nnx.Module):
    """The paper's baseline "Random": every channel of every frame of every clip draws its action.

    Args:
        shares: probability of each of `actions`.
        seed: of the draws made without a key, which are the same at each call.
        actions: what is drawn from.

    Raises:
        UserError: unless there is one share for each action and they add up to 1.
    """

    def __init__(self, shares: Sequence[float], seed: int, actions: Sequence[str] = act.ALL):
        self.actions = act.check(actions)
        if len(shares) != len(self.actions) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise UserError(
                f"shares: expected one per action {self.actions}, adding up to 1, found {tuple(shares)}"
            )
        self.shares, self.seed = tuple(shares), seed

    @property
    def macs(self) -> int:
        """None."""
        return 0

    def __call__(
        self,
        x: Float[Array, "b t *s i"],
        y: Float[Array, "b t *z c"],
        key: Key[Array, ""] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "b t *z c"], Float[Array, "b t c actions"]]:
        """Fuses a clip as it falls; see `TemporalFusion`."""
        del train
        key = jax.random.key(self.seed) if key is None else key
        odds, shape = jnp.log(jnp.asarray(self.shares)), (len(y), y.shape[-1])
        drawn = [jax.random.categorical(k, odds, shape=shape) for k in policy.frame_keys(key, y.shape[1])]
        chosen = jax.nn.one_hot(jnp.stack(drawn, 1), len(self.actions))
        return fusion.fuse_clip(chosen, y, self.actions), chosen


def shares_for(frame: costs.FrameCost, macs: float, num_frames: int = 8) -> tuple[float, float, float]:
    """Shares of skip, reuse and keep, the first two alike, at which random policies cost so much on average.

    Args:
        frame: cost of the net and its sites.
        macs: per clip.
        num_frames: T.

    Raises:
        UserError: for a cost that no such shares have.
    """

    def shares(moved: float) -> tuple[float, float, float]:
        return moved / 2, moved / 2, 1 - moved

    def cost(moved: float) -> float:
        return costs.expected(frame, shares(moved), num_frames)

    least, most = cost(1.0), cost(0.0)
    if not least <= macs <= most:
        raise UserError(
            f"target_gmacs: expected {least / 1e9:.3g} to {most / 1e9:.3g}, what random policies can cost, "
            f"found {macs / 1e9:.3g}"
        )
    low, high = 0.0, 1.0
    for _ in range(50):  # halvings: the cost falls as the share of skip and reuse rises
        middle = (low + high) / 2
        low, high = (low, middle) if cost(middle) < macs else (middle, high)
    return shares(low)


class MagnitudeThreshold(nnx.Module):
    """The paper's baseline "Threshold": a frame keeps the channels of largest mean |y| and skips the others.

    As published (ops/batenet.py, `gate_threshold` with `relative_keep_threshold`): int(share * channels)
    are kept, by the mean over the pixels.

    Args:
        share: of the channels to keep, more than 0 and at most 1.
    """

    actions = ("skip", "keep")

    def __init__(self, share: float):
        if not 0 < share <= 1:
            raise UserError(f"keep_share: expected more than 0 and at most 1, found {share}")
        self.share = share

    @property
    def macs(self) -> int:
        """None, as published."""
        return 0

    def __call__(
        self,
        x: Float[Array, "b t *s i"],
        y: Float[Array, "b t *z c"],
        key: Key[Array, ""] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "b t *z c"], Float[Array, "b t c actions"]]:
        """Cuts a clip's small channels; see `TemporalFusion`."""
        del x, key, train
        size = policy.pool(jnp.abs(y), 2)
        _, largest = jax.lax.top_k(size, int(self.share * y.shape[-1]))
        kept = jax.nn.one_hot(largest, y.shape[-1]).sum(-2)
        chosen = jnp.stack([1 - kept, kept], -1)
        return fusion.fuse_clip(chosen, y, self.actions), chosen
