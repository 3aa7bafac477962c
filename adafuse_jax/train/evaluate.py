"""Evaluation: every clip once, metrics summed over batches."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from adafuse_jax.errors import UserError
from adafuse_jax.train import mesh
from adafuse_jax.train.metrics import Metrics, Scores
from adafuse_jax.train.state import Tree

Result = dict[str, Any]


def evaluate(
    step: Callable,
    params: Tree,
    stats: Tree,
    batches: Iterable[dict[str, np.ndarray]],
    devices: Mesh,
    key: jax.Array | None = None,
) -> Result:
    """Evaluates all batches.

    Args:
        step: from `make_eval_step`.
        params: of the model.
        stats: of its BatchNorms.
        batches: padded batches with weights; of several processes, each gives its blocks of them.
        devices: what to run on.
        key: for sampled policies, as published evaluation does; None: the likeliest actions.

    Returns:
        `Metrics.compute()` of all clips, `map`, the mean average precision (0 to 1), and `histograms`, which
        is `Metrics.histograms()`.

    Raises:
        UserError: where there was no clip.
    """
    total: Metrics | None = None
    scores = Scores()
    for i, batch in enumerate(batches):
        batch_key = None if key is None else jax.random.fold_in(key, i)
        metrics, ranked = jax.device_get(step(params, stats, mesh.put(batch, devices), batch_key))
        scores.append(*ranked)
        total = metrics if total is None else total.merge(metrics)
    if total is None:
        raise UserError("evaluation: expected at least one clip, found none")
    found = total.compute()
    # Of logits that aren't numbers there is no ranking.
    numbers = math.isfinite(found["loss"])
    found["map"] = scores.mean_average_precision() if numbers else math.nan
    return {**found, "histograms": total.histograms()}
