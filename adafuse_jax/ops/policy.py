"""The policy of a fusion site: pooled features -> log-probabilities -> one-hot actions (paper, section 3)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from adafuse_jax.errors import UserError
from adafuse_jax.ops import norm

MIN_PROBABILITY = 1e-8


class MLP(NamedTuple):
    """Weights of fc0 -> BatchNorm -> ReLU -> fc1."""

    kernel0: Float[Array, "i hidden"]
    bias0: Float[Array, " hidden"]
    scale: Float[Array, " hidden"]
    shift: Float[Array, " hidden"]
    kernel1: Float[Array, "hidden o"]
    bias1: Float[Array, " o"]


def mlp_sizes(in_features: int, features: int, actions: Sequence[str], group_size: int) -> tuple[int, int]:
    """Inputs and outputs of a policy network; raises UserError if the groups don't divide the channels."""
    if group_size < 1 or features % group_size:
        raise UserError(f"group_size: expected a divisor of the {features} channels, found {group_size}")
    inputs = 2 * in_features if "reuse" in actions else in_features
    return inputs, features // group_size * len(actions)


def prior_bias(
    outputs: int, actions: Sequence[str], prior: Sequence[float] | None, strength: float
) -> Float[Array, " o"]:
    """fc1's initial bias: `strength` on one action a channel, the actions dealt out by the shares `prior`."""
    if prior is None:
        return jnp.zeros(outputs)
    if len(prior) != len(actions) or min(prior) < 0 or abs(sum(prior) - 1) > 1e-6:
        raise UserError(
            f"prior: expected one share per action {tuple(actions)}, adding up to 1, found {prior}"
        )
    groups = outputs // len(actions)
    bounds = jnp.cumsum(jnp.asarray(prior))[:-1] * groups
    chosen = jnp.searchsorted(bounds, jnp.arange(groups) + 0.5)
    return strength * jax.nn.one_hot(chosen, len(actions)).reshape(-1)


def pool(x: Float[Array, "*b c"], batch_axes: int) -> Float[Array, "..."]:
    """Global average v of a feature map: the mean over the axes between the batch axes and the last."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x.mean(tuple(range(batch_axes, x.ndim - 1)))


def seen(
    v: Float[Array, "*b i"], before: Float[Array, "*b i"], actions: Sequence[str]
) -> Float[Array, "*b inputs"]:
    """What the policy network sees: cat[v_{t-1}, v_t], the frame before first; v_t alone without reuse."""
    return jnp.concatenate([before, v], -1) if "reuse" in actions else v


def logits(
    v: Float[Array, "*b i"],
    mlp: MLP,
    running: norm.Moments | None,
    norm_groups: int = 1,
) -> tuple[Float[Array, "*b o"], norm.Moments]:
    """fc1(ReLU(BN(fc0(v)))) and the moments that were used: `running`, or the batch's where it is None.

    The batch's may be those of groups of its clips, see `norm.moments`.
    """
    hidden = v @ mlp.kernel0 + mlp.bias0
    statistics = norm.moments(hidden, norm_groups) if running is None else running
    hidden = jax.nn.relu(norm.normalize(hidden, statistics, mlp.scale, mlp.shift))
    return hidden @ mlp.kernel1 + mlp.bias1, statistics


def log_policy(logits: Float[Array, "*b o"], num_actions: int) -> Float[Array, "*b channels actions"]:
    """log(max(softmax(logits), 1e-8)) per channel; the action is the fastest axis of the logits."""
    logits = logits.reshape(*logits.shape[:-1], -1, num_actions)
    return jnp.log(jnp.maximum(jax.nn.softmax(logits), MIN_PROBABILITY))


def spread(policy: Float[Array, "*b groups actions"], group_size: int) -> Float[Array, "*b channels actions"]:
    """One decision per group -> one per channel, neighbouring channels together."""
    return policy if group_size == 1 else jnp.repeat(policy, group_size, axis=-2)


def decide(
    log_probs: Float[Array, "b channels actions"], key: Key[Array, ""] | None, tau: float
) -> Float[Array, "b channels actions"]:
    """The actions of one frame: the likeliest without a key, Gumbel-sampled with one."""
    if key is None:
        return argmax(log_probs)
    return straight_through(log_probs, jax.random.gumbel(key, log_probs.shape, log_probs.dtype), tau)


def decide_clip(
    log_probs: Float[Array, "b t channels actions"], key: Key[Array, ""] | None, tau: float
) -> Float[Array, "b t channels actions"]:
    """`decide` for each frame of a clip, frame t with the key `fold_in(key, t)`."""
    keys = None if key is None else frame_keys(key, log_probs.shape[1])
    return jax.vmap(decide, (1, None if key is None else 0, None), 1)(log_probs, keys, tau)


def argmax(log_probs: Float[Array, "*b channels actions"]) -> Float[Array, "*b channels actions"]:
    """The likeliest action, one-hot, without a gradient."""
    best = jnp.argmax(log_probs, -1)
    return jax.nn.one_hot(best, log_probs.shape[-1], dtype=log_probs.dtype)


def straight_through(
    log_probs: Float[Array, "*b channels actions"],
    noise: Float[Array, "*b channels actions"],
    tau: float,
) -> Float[Array, "*b channels actions"]:
    """Gumbel-softmax: one-hot of argmax(log p + noise) forward, softmax((log p + noise) / tau) backward."""
    soft = jax.nn.softmax((log_probs + noise) / tau)
    # soft - stop_gradient(soft) is exactly zero, so the value stays exactly one-hot.
    return argmax(log_probs + noise) + (soft - jax.lax.stop_gradient(soft))


def frame_keys(key: Key[Array, ""], num_frames: int) -> Key[Array, " t"]:
    """One key a frame, from the frame's index: a stream draws what the clip draws."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_frames))
