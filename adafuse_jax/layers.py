"""The layer to plug into a Flax NNX model: `TemporalFusion`, and what it is made of."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from adafuse_jax.errors import UserError
from adafuse_jax.ops import actions as act
from adafuse_jax.ops import costs, fusion, norm, policy
from adafuse_jax.ops.shift import previous_frame

Carry = tuple[Float[Array, "b i"], Float[Array, "b *s c"]]


def normal(std: float) -> nnx.Initializer:
    """N(0, std^2), drawn by numpy from the key's bits.

    JAX compiles a sampler for every shape: 20 s for a ResNet-50, against 1 s. Under a transformation, where
    the key has no value, JAX draws (other numbers).
    """

    def init(key: Key[Array, ""], shape: Sequence[int], dtype=jnp.float32) -> Array:
        if isinstance(key, jax.core.Tracer):
            return std * jax.random.normal(key, shape, dtype)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        return jnp.asarray(std * rng.standard_normal(shape, np.float32), dtype)

    return init


def uniform(bound: float) -> nnx.Initializer:
    """Uniform between -bound and bound; drawn as `normal` is."""

    def init(key: Key[Array, ""], shape: Sequence[int], dtype=jnp.float32) -> Array:
        if isinstance(key, jax.core.Tracer):
            return jax.random.uniform(key, shape, dtype, -bound, bound)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        return jnp.asarray(rng.uniform(-bound, bound, shape), dtype)

    return init


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last, with PyTorch's running statistics.

    `momentum` is the share of their old value that stays, 1 - PyTorch's; `epsilon` is added to the variance.
    Without `affine` it has neither scale nor bias to learn. Training takes the statistics of each of `groups`
    parts of the batch alone (`set_norm_groups`).
    """

    def __init__(
        self,
        features: int,
        *,
        affine: bool = True,
        momentum: float = norm.MOMENTUM,
        epsilon: float = norm.EPSILON,
        rngs: nnx.Rngs | None = None,
    ):
        self.momentum, self.epsilon, self.groups = momentum, epsilon, 1
        self.scale = nnx.Param(jnp.ones(features)) if affine else nnx.data(None)
        self.bias = nnx.Param(jnp.zeros(features)) if affine else nnx.data(None)
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))

    @property
    def running(self) -> norm.Moments:
        """Mean and (unbiased) variance so far."""
        return self.mean[...], self.var[...]

    def update(self, batch: norm.Moments, count: int) -> None:
        """Takes a batch's moments, over `count` values a channel, into the running statistics."""
        self.mean[...], self.var[...] = norm.update(self.running, batch, count, self.momentum)

    def __call__(self, x: Float[Array, "*n c"], train: bool = False) -> Float[Array, "*n c"]:
        if self.scale is None:
            scale, bias = jnp.ones_like(self.mean[...]), jnp.zeros_like(self.mean[...])
        else:
            scale, bias = self.scale[...], self.bias[...]
        if not train:
            return norm.normalize(x, self.running, scale, bias, self.epsilon)
        y, statistics = norm.batch_norm(x, scale, bias, self.epsilon, self.groups)
        self.update(statistics, x.size // x.shape[-1])
        return y


def set_norm_groups(model: nnx.Module, groups: int) -> None:
    """Makes every `BatchNorm` in a model take a batch's statistics over each of `groups` parts of it alone.

    The parts are consecutive clips; they must divide the batch. Evaluation doesn't change.
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            module.groups = groups


class TemporalFusion(nnx.Module):
    """Decides per frame and channel to keep y_t, reuse y_{t-1} or skip (paper, section 3, Eq. 3).

    Call it on clips, between a convolution (with its norm and activation) and the next:

        fused, policy = fusion(x, y, key=key)

    `x` is what the convolution read, `y` what it gave. Give `ops.costs.savings` the policy to count what it
    saves. On a stream, `step` does one frame.

    Args:
        in_features: channels of x.
        features: channels of y.
        hidden: width of the policy network.
        actions: what the policy may choose: some of "skip", "reuse" and "keep". Without "reuse" the
            policy sees v_t alone.
        tau: temperature of the straight-through gradient.
        group_size: neighbouring channels that share one decision; divides `features`.
        detach_history: stops the gradient through the reused map.
        prior: shares of the channels whose policy starts out towards (each of `actions`), by a bias of
            `prior_strength` on fc1. None: the published start, all biases 0.
        share_with: another fusion of the same sizes, whose fc0 and fc1 this one uses too; the
            BatchNorm between them stays its own, as published.
        rngs: for the initial weights, N(0, 0.001).

    Raises:
        UserError: for other actions, a group size that doesn't divide the
            channels, or sharing among different sizes.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        hidden: int = 512,
        actions: Sequence[str] = act.ALL,
        tau: float = 0.67,
        group_size: int = 1,
        detach_history: bool = False,
        prior: Sequence[float] | None = None,
        prior_strength: float = 3.0,
        share_with: "TemporalFusion | None" = None,
        rngs: nnx.Rngs,
    ):
        self.actions = act.check(actions)
        self.in_features, self.features, self.hidden = in_features, features, hidden
        self.tau, self.group_size, self.detach_history = tau, group_size, detach_history
        inputs, outputs = policy.mlp_sizes(in_features, features, self.actions, group_size)
        if share_with is None:
            init = normal(0.001)
            bias = policy.prior_bias(outputs, self.actions, prior, prior_strength)
            self.fc0 = nnx.Linear(inputs, hidden, kernel_init=init, rngs=rngs)
            self.fc1 = nnx.Linear(
                hidden, outputs, kernel_init=init, bias_init=lambda *_: jnp.asarray(bias), rngs=rngs
            )
        else:
            theirs = share_with.fc0.kernel.shape + share_with.fc1.kernel.shape
            ours = (inputs, hidden, hidden, outputs)
            if theirs != ours or share_with.actions != self.actions:
                raise UserError(f"share_with: expected a policy of sizes {ours}, found {theirs}")
            self.fc0, self.fc1 = share_with.fc0, share_with.fc1
        self.bn = BatchNorm(hidden)

    @property
    def macs(self) -> int:
        """MACs of the policy network a frame, as the published counter counts them."""
        inputs, outputs = policy.mlp_sizes(self.in_features, self.features, self.actions, self.group_size)
        layers = costs.linear_macs(inputs, self.hidden) + costs.linear_macs(self.hidden, outputs)
        return layers + costs.norm_macs(self.hidden)

    @property
    def mlp(self) -> policy.MLP:
        """Weights of the policy network."""
        return policy.MLP(
            self.fc0.kernel[...],
            self.fc0.bias[...],
            self.bn.scale[...],
            self.bn.bias[...],
            self.fc1.kernel[...],
            self.fc1.bias[...],
        )

    def _log_policy(
        self, v: Float[Array, "*b i"], before: Float[Array, "*b i"], train: bool = False
    ) -> Float[Array, "*b groups actions"]:
        seen = policy.seen(v, before, self.actions)
        logits, statistics = policy.logits(seen, self.mlp, None if train else self.bn.running, self.bn.groups)
        if train:
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
        """Fuses a clip.

        Args:
            x: the input of the convolution that made y.
            y: its output, after norm and activation.
            key: for Gumbel noise, drawn per frame from `fold_in(key, t)`; None: the likeliest action.
            train: batch statistics in the policy network, and its running statistics updated.

        Returns:
            The fused map and the one-hot policy, straight-through under a key.
        """
        chosen = policy.decide_clip(self.log_policy(x, train), key, self.tau)
        chosen = policy.spread(chosen, self.group_size)
        return fusion.fuse_clip(chosen, y, self.actions, self.detach_history), chosen

    def initial_carry(self, x_t: Float[Array, "b *s i"], y_t: Float[Array, "b *z c"]) -> Carry:
        """The carry before the first frame: zeros for v_{-1} and y_{-1}."""
        return jnp.zeros_like(policy.pool(x_t, 1)), jnp.zeros_like(y_t)

    def step(
        self,
        carry: Carry,
        x_t: Float[Array, "b *s i"],
        y_t: Float[Array, "b *z c"],
        key: Key[Array, ""] | None = None,
    ) -> tuple[Carry, tuple[Float[Array, "b *z c"], Float[Array, "b c actions"]]]:
        """One frame of the scan over frames, with running statistics.

        Args:
            carry: (v_{t-1}, y_{t-1}), from `initial_carry` or the step before.
            x_t: what the convolution read.
            y_t: what it gave.
            key: this frame's own key (the clip form uses `fold_in(key, t)`); None: the likeliest action.

        Returns:
            The next carry, and the fused map with the one-hot policy.
        """
        v_before, y_before = carry
        v = policy.pool(x_t, 1)
        chosen = policy.decide(self._log_policy(v, v_before), key, self.tau)
        chosen = policy.spread(chosen, self.group_size)
        carried, fused = fusion.fuse_step(y_before, chosen, y_t, self.actions, self.detach_history)
        return (v, carried), (fused, chosen)

    def scan(
        self, x: Float[Array, "b t *s i"], y: Float[Array, "b t *z c"], key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b t *z c"], Float[Array, "b t c actions"]]:
        """`step` scanned over the frames of a clip: what the call computes, frame after frame."""
        frames = jnp.arange(x.shape[1]) if key is None else policy.frame_keys(key, x.shape[1])

        def body(carry, frame):
            x_t, y_t, key_t = frame
            return self.step(carry, x_t, y_t, None if key is None else key_t)

        first = self.initial_carry(x[:, 0], y[:, 0])
        _, out = jax.lax.scan(body, first, (jnp.moveaxis(x, 1, 0), jnp.moveaxis(y, 1, 0), frames))
        return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), out)
