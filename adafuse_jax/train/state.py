"""The state of a run as plain pytrees; the only place that takes an NNX model apart and together."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int

from adafuse_jax.models.recognizer import Recognizer

Tree = Any  # nested dicts of arrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What a step changes.

    Attributes:
        step: steps done.
        params: trainable arrays, float32.
        stats: running statistics of the BatchNorms.
        opt_state: the optimiser's.
        ema: moving averages of params and stats, where the run keeps them (`config.train.ema_decay`).
    """

    step: Int[Array, ""]
    params: Tree
    stats: Tree
    opt_state: Any
    ema: tuple[Tree, Tree] | None = None


def take_apart(model: Recognizer) -> tuple[nnx.GraphDef, Tree, Tree]:
    """The model's structure, its parameters and its running statistics."""
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def put_together(graph: nnx.GraphDef, params: Tree, stats: Tree) -> Recognizer:
    """The model of these arrays; works on traced ones."""
    return nnx.merge(graph, nnx.State(params), nnx.State(stats))


def running_statistics(model: Recognizer) -> Tree:
    """The statistics as a step left them."""
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def initial(
    params: Tree, stats: Tree, optimizer: optax.GradientTransformation, ema_decay: float = 0.0
) -> State:
    """The state before the first step; with averages where their decay isn't 0."""
    # Copies: a step gives each of its arrays away.
    ema = jax.tree.map(jnp.copy, (params, stats)) if ema_decay else None
    return State(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params), ema)


def averaged(ema: tuple[Tree, Tree], new: tuple[Tree, Tree], step: Int[Array, ""], decay: float):
    """The moving averages after a step: d * old + (1 - d) * new, d = min(decay, (1 + step) / (10 + step)).

    d starts small so that the initial weights are soon forgotten, as in TensorFlow's moving averages.
    """
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, now: old + (1 - d) * (now - old), ema, new)
