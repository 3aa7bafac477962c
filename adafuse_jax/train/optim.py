"""The published optimiser from optax's pieces: parameter groups, clipping, SGD or AdamW, learning rates."""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adafuse_jax import config as cfg
from adafuse_jax.errors import UserError, unknown


def group_of(path: Sequence[Any], params: Mapping[Any, Any]) -> str:
    """The published parameter group (reference.md, "Optimiser") of the leaf at `path`, a row of dict keys.

    Returns:
        "norm" for scale and shift of a BatchNorm (a dict that holds a 'scale'), "bias" for any other
        bias (an LSTM has two: bias_x and bias_h), else "weight".
    """
    module = functools.reduce(operator.getitem, path[:-1], params)
    if "scale" in module:
        return "norm"
    return "bias" if str(path[-1]).startswith("bias") else "weight"


def groups(params: Mapping[Any, Any]) -> Any:
    """`group_of` each leaf, as a tree like `params` (nested dicts)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: group_of([entry.key for entry in path], params), params
    )


def schedule(config: cfg.Optimizer, steps_per_epoch: int, total_steps: int) -> optax.Schedule:
    """Learning rate of a step (from 0); biases take `bias_lr_multiplier` times as much.

    step: the rate falls by `decay_factor` at each of `decay_epochs`, counted from the start of the run.
    cosine: 0.5 lr (1 + cos(pi s / S)) with s, S steps after the warm-up. The published rate is the same at
    the start of every epoch and stays there for the epoch; ours is smooth.
    A warm-up of w steps comes before: lr * step / w.

    Raises:
        UserError: where the warm-up is no shorter than the run.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if warmup >= total_steps:
        raise UserError(
            f"config.optimizer.warmup_epochs: expected less than the run's {total_steps / steps_per_epoch:g}"
            f" epochs, found {config.warmup_epochs:g}"
        )
    if config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(config.learning_rate, total_steps - warmup)
    elif config.schedule == "step":
        factors = {}
        for epoch in config.decay_epochs:
            step = round(epoch * steps_per_epoch) - warmup
            factors[step] = factors.get(step, 1.0) * config.decay_factor
        rate = optax.piecewise_constant_schedule(config.learning_rate, factors)
    else:
        raise unknown("value of config.optimizer.schedule", config.schedule, ("step", "cosine"))
    if not warmup:
        return rate
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, warmup), rate], [warmup])


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales the gradient by min(1, max_norm / (norm + 1e-6)), norm over all leaves, as PyTorch clips.

    `optax.clip_by_global_norm` leaves out the 1e-6, which shows where `max_norm` is small.
    """

    def clip(updates, params):
        del params
        scale = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates)

    return optax.stateless(clip)


def make_optimizer(
    config: cfg.Optimizer, params: Mapping[Any, Any], steps_per_epoch: int, total_steps: int
) -> optax.GradientTransformation:
    """The optimiser of a run over `params` (nested dicts of arrays).

    Published SGD is PyTorch's, for the clipped gradient g and a parameter p (biases: lr x
    `bias_lr_multiplier`; biases and BatchNorm: no decay):
        g <- g + decay * p;  m <- momentum * m + g;  p <- p - lr * m
    AdamW takes `momentum` as beta_1 and decays beside the adaptive step: p <- p - lr * (adam(g) + decay * p).
    """
    group = groups(params)
    decay = optax.add_decayed_weights(config.weight_decay, mask=jax.tree.map(lambda g: g == "weight", group))
    if config.name == "sgd":
        rule = (decay, optax.trace(config.momentum))
    elif config.name == "adamw":
        rule = (optax.scale_by_adam(b1=config.momentum), decay)
    else:
        raise unknown("value of config.optimizer.name", config.name, ("sgd", "adamw"))
    return optax.chain(
        *([clip_by_global_norm(config.clip_norm)] if config.clip_norm > 0 else []),
        *rule,
        optax.masked(optax.scale(config.bias_lr_multiplier), jax.tree.map(lambda g: g == "bias", group)),
        optax.scale_by_learning_rate(schedule(config, steps_per_epoch, total_steps)),
    )
