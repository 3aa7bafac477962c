"""The layer to plug into a Flax Linen model: the same parameters and numbers as `layers.TemporalFusion`."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from adafuse_jax.errors import UserError
from adafuse_jax.ops import actions as act
from adafuse_jax.ops import fusion, norm, policy
from adafuse_jax.ops.shift import previous_frame

Carry = tuple[Float[Array, "b i"], Float[Array, "b *s c"]]


class Linear(nn.Module):
    """The parameters of a policy network's linear layer; what they compute is in `ops.policy`."""

    features: int
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, in_features: int) -> tuple[Float[Array, "i o"], Float[Array, " o"]]:
        kernel = self.param("kernel", nn.initializers.normal(0.001), (in_features, self.features))
        return kernel, self.param("bias", self.bias_init, (self.features,))


class BatchNorm(nn.Module):
    """The parameters and running statistics of a policy network's batch normalisation."""

    features: int

    def setup(self):
        shape = (self.features,)
        self.scale = self.param("scale", nn.initializers.ones, shape)
        self.bias = self.param("bias", nn.initializers.zeros, shape)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        self.var = self.variable("batch_stats", "var", jnp.ones, shape)

    @property
    def running(self) -> norm.Moments:
        """Mean and (unbiased) variance so far."""
        return self.mean.value, self.var.value

    def update(self, batch: norm.Moments, count: int) -> None:
        """Takes a batch's moments, over `count` values a channel, into the running statistics."""
        self.mean.value, self.var.value = norm.update(self.running, batch, count)


class TemporalFusion(nn.Module):
    """Decides per frame and channel to keep y_t, reuse y_{t-1} or skip (paper, section 3, Eq. 3).

    Call it on clips, between a convolution (with its norm and activation) and the next:

        fused, policy = TemporalFusion(features=64)(x, y, key=key)

    Parameters are those of the NNX layer: fc0/kernel, fc0/bias, bn/scale, bn/bias, fc1/kernel, fc1/bias, and
    bn/mean, bn/var in `batch_stats` (mutable when `train`). Noise comes from the given keys alone.

    Calling one instance at several sites shares the whole policy, BatchNorm too.

    Attributes:
        features: channels of y.
        hidden: width of the policy network.
        actions: what the policy may choose: some of "skip", "reuse" and "keep". Without "reuse" the
            policy sees v_t alone.
        tau: temperature of the straight-through gradient.
        group_size: neighbouring channels that share one decision; divides `features`.
        detach_history: stops the gradient through the reused map.
        prior: shares of the channels whose policy starts out towards (each of `actions`), by a bias of
            `prior_strength` on fc1. None: the published start, all biases 0.
        prior_strength: see `prior`.
        share_with: another fusion of the same sizes in the same model, whose fc0 and fc1 this one uses too;
            the BatchNorm between them stays its own, as published.

    Raises:
        UserError: for other actions, a group size that doesn't divide the
            channels, or sharing among different sizes.
    """

    features: int
    hidden: int = 512
    actions: Sequence[str] = act.ALL
    tau: float = 0.67
    group_size: int = 1
    detach_history: bool = False
    prior: Sequence[float] | None = None
    prior_strength: float = 3.0
    share_with: "TemporalFusion | None" = None

    def __post_init__(self):
        self.actions = act.check(self.actions)
        policy.mlp_sizes(1, self.features, self.actions, self.group_size)
        super().__post_init__()

    def setup(self):
        _, outputs = policy.mlp_sizes(1, self.features, self.actions, self.group_size)
        self.bn = BatchNorm(self.hidden)
        if self.share_with is None:
            self.fc0 = Linear(self.hidden)
            self.fc1 = Linear(
                outputs, lambda *_: policy.prior_bias(outputs, self.actions, self.prior, self.prior_strength)
            )
            return
        theirs = self.share_with
        if (theirs.hidden, theirs.fc1.features, theirs.actions) != (self.hidden, outputs, self.actions):
            raise UserError(
                f"share_with: expected a policy of {self.hidden} hidden units and {outputs} outputs over "
                f"{self.actions}, found {theirs.hidden}, {theirs.fc1.features} and {theirs.actions}"
            )
        self.fc0, self.fc1 = theirs.fc0, theirs.fc1

    def _log_policy(
        self, v: Float[Array, "*b i"], before: Float[Array, "*b i"], train: bool = False
    ) -> Float[Array, "*b groups actions"]:
        seen = policy.seen(v, before, self.actions)
        mlp = policy.MLP(*self.fc0(seen.shape[-1]), self.bn.scale, self.bn.bias, *self.fc1(self.hidden))
        logits, statistics = policy.logits(seen, mlp, None if train else self.bn.running)
        if train and not self.is_initializing():
            self.bn.update(statistics, v.size // v.shape[-1])
        return policy.log_policy(logits, len(self.actions))

    def log_policy(
        self, x: Float[Array, "b t *s i"], train: bool = False
    ) -> Float[Array, "b t groups actions"]:
        """Clamped log-probabilities of the actions, one per group of channels, before any noise."""
        v = policy.pool(x, 2)
        return self._log_policy(v, previous_frame(v), train)

    def __call__(
        self,
        x: Float[Array, "b t *s i"],
        y: Float[Array, "b t *z c"],
        key: Key[Array, ""] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "b t *z c"], Float[Array, "b t c actions"]]:
        """Fuses a clip: see `layers.TemporalFusion.__call__`."""
        chosen = policy.decide_clip(self.log_policy(x, train), key, self.tau)
        chosen = policy.spread(chosen, self.group_size)
        return fusion.fuse_clip(chosen, y, self.actions, self.detach_history), chosen

    @nn.nowrap
    def initial_carry(self, x_t: Float[Array, "b *s i"], y_t: Float[Array, "b *z c"]) -> Carry:
        """The carry before the first frame: zeros for v_{-1} and y_{-1}. Needs no parameters."""
        return jnp.zeros_like(policy.pool(x_t, 1)), jnp.zeros_like(y_t)

    def step(
        self,
        carry: Carry,
        x_t: Float[Array, "b *s i"],
        y_t: Float[Array, "b *z c"],
        key: Key[Array, ""] | None = None,
    ) -> tuple[Carry, tuple[Float[Array, "b *z c"], Float[Array, "b c actions"]]]:
        """One frame, with running statistics: `fusion.apply(variables, carry, x_t, y_t, method="step")`.

        See `layers.TemporalFusion.step`.
        """
        v_before, y_before = carry
        v = policy.pool(x_t, 1)
        chosen = policy.decide(self._log_policy(v, v_before), key, self.tau)
        chosen = policy.spread(chosen, self.group_size)
        carried, fused = fusion.fuse_step(y_before, chosen, y_t, self.actions, self.detach_history)
        return (v, carried), (fused, chosen)
