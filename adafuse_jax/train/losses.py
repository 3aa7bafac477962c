"""Eq. 6: cross-entropy of the averaged logits + lambda * GMACs per frame of the whole net."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from adafuse_jax.config import Loss
from adafuse_jax.models.gated_conv import GatedConv
from adafuse_jax.models.recognizer import Output
from adafuse_jax.ops import gating


def weighted_sum(values: Float[Array, " b *rest"], weights: Float[Array, " b"]) -> Float[Array, "*rest"]:
    """Sum over clips of weight * value; a clip of weight 0 is padding and counts nowhere, NaN or not."""
    weights = jnp.expand_dims(weights, tuple(range(1, values.ndim)))
    return jnp.where(weights > 0, weights * values, 0.0).sum(0)


def _weighted_mean(values, weights):
    # A batch of nothing but padding has mean 0, not 0/0.
    return weighted_sum(values, weights) / jnp.maximum(weights.sum(), jnp.finfo(weights.dtype).tiny)


def clip_cross_entropy(
    logits: Float[Array, "b classes"], labels: Int[Array, " b"], label_smoothing: float = 0.0
) -> Float[Array, " b"]:
    """Cross-entropy of each clip in nats, in float32 whatever the precision of the logits."""
    classes = logits.shape[-1]
    targets = optax.smooth_labels(jax.nn.one_hot(labels, classes), label_smoothing)
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def cross_entropy(
    logits: Float[Array, "b classes"],
    labels: Int[Array, " b"],
    weights: Float[Array, " b"],
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """First term of Eq. 6: weighted mean over the clips of weight > 0.

    Args:
        logits: mean over the frames of a clip.
        labels: class of each clip; anything where the weight is 0.
        weights: 1 for a clip, 0 for padding.
        label_smoothing: share of the target spread evenly over all classes.
    """
    return _weighted_mean(clip_cross_entropy(logits, labels, label_smoothing), weights)


def efficiency(
    gmacs_per_frame: Float[Array, "*b"],
    weight: float | Float[Array, ""],
    weights: Float[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Second term of Eq. 6 as published: weight * |G| (reference.md, "Loss").

    Args:
        gmacs_per_frame: G, GMACs per frame of the whole net under its policies: one number or one a clip.
        weight: lambda.
        weights: with G per clip, 1 for a clip, 0 for padding; all clips count where None.
    """
    gmacs = jnp.abs(jnp.asarray(gmacs_per_frame))
    return weight * (jnp.mean(gmacs) if weights is None else _weighted_mean(gmacs, weights))


def flops_weight_at(
    step: int | Int[Array, ""], total_steps: int, weight: float, warmup: tuple[float, float] = (0.0, 0.0)
) -> Float[Array, ""]:
    """Lambda at `step` (from 0): 0 up to the first share of all steps, linear, full from the second on.

    From scratch, a weight applied while accuracy is at chance collapses every policy to skip (design.md).
    `step` may be traced; (0, 0) means full from the first step.
    """
    start, end = (share * total_steps for share in warmup)
    step = jnp.asarray(step, jnp.float32)
    rise = (step - start) / (end - start) if end > start else step >= end
    return weight * jnp.clip(rise, 0.0, 1.0).astype(jnp.float32)


def uniform_usage(
    policies: Mapping[str, Float[Array, "b t _ actions"]], weights: Float[Array, " b"]
) -> Float[Array, ""]:
    """AR-Net's own term, before its weight: |usage - 1/actions|_2 of the shares of all the batch's decisions.

    Keeps a policy network from settling on one action while the nets are still untrained. 0 without policies.
    """
    if not policies:
        return jnp.zeros(())
    counts = sum(weighted_sum(p.astype(jnp.float32).sum((1, 2)), weights) for p in policies.values())
    usage = counts / jnp.maximum(counts.sum(), 1)
    # The root has no gradient at 0.
    return jnp.sqrt(jnp.square(usage - 1 / len(usage)).sum() + 1e-12)


def thresholds(model: nnx.Module, target: float, weight: float) -> Float[Array, ""]:
    """CGNet's own term: weight * sum over all gated channels of (threshold - target)^2; 0 without any."""
    gated = [module for _, module in nnx.iter_modules(model) if isinstance(module, GatedConv)]
    return weight * sum((gating.distance_to_target(g.threshold[...], target) for g in gated), jnp.zeros(()))


def parts(
    model: nnx.Module,
    out: Output,
    batch: Mapping[str, Array],
    gmacs_per_frame: Float[Array, " b"],
    flops_weight: Float[Array, ""],
    loss: Loss,
) -> dict[str, Float[Array, ""]]:
    """The terms of the loss, which is their sum: those of Eq. 6, and the model's own where it has one.

    Args:
        model: what gave `out`.
        out: of the batch's clips.
        batch: its "label" and "weight".
        gmacs_per_frame: of each clip.
        flops_weight: lambda at this step.
        loss: of the config.
    """
    labels, weights = batch["label"], batch["weight"]
    found = {
        "cross_entropy": cross_entropy(out.logits, labels, weights, loss.label_smoothing),
        "efficiency": efficiency(gmacs_per_frame, flops_weight, weights),
    }
    if loss.uniform_weight:
        found["uniform_usage"] = loss.uniform_weight * uniform_usage(out.policies, weights)
    if any(isinstance(module, GatedConv) for _, module in nnx.iter_modules(model)):
        found["thresholds"] = thresholds(model, loss.threshold_target, loss.threshold_weight)
    return found
