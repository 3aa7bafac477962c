"""Temporal fusion inside a Flax Linen model."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, Shaped

from adafuse_jax.insert import sites as of
from adafuse_jax.insert.fused import Fused, Policies, forward
from adafuse_jax.linen import TemporalFusion


def _watch(
    run: of.Run | None,
    root: tuple[str, ...],
    seen: Callable[[str, nn.Module], None] = lambda name, module: None,
) -> AbstractContextManager:
    """Lets the calls of the sites' modules go through `run`; `root` is the path of the model.

    After the call of any of the model's modules `seen` is told its path and the module.
    """
    names = () if run is None else run.names

    def intercept(function, args, kwargs, context):
        path = context.module.path
        if context.method_name != "__call__" or path[: len(root)] != root or path == root:
            return function(*args, **kwargs)
        name = ".".join(path[len(root) :])
        out = run.call(name, function, args, kwargs) if name in names else function(*args, **kwargs)
        seen(name, context.module)
        return out

    return nn.intercept_methods(intercept)


class FusedModel(Fused, nn.Module):
    """A model of frames with temporal fusion at its sites: see `insert_fusion`."""

    model: nn.Module
    sites: tuple[of.Site, ...]
    frame: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]

    def setup(self):
        options = dict(self.options)
        self.fusions = {site.first: TemporalFusion(site.features, **options) for site in self.sites}

    def __call__(
        self,
        clip: Shaped[Array, "b t h w c"],
        key: Key[Array, ""] | None = None,
        train: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, Policies]:
        """Runs the model on all frames.

        Args:
            clip: clips of frames.
            key: for Gumbel noise; None: the likeliest actions.
            train: batch statistics in the policy networks, and their running statistics updated in
                `batch_stats`. Handed on to a model whose call has an argument `train`.
            **kwargs: handed on to the model.

        Returns:
            What the model gives, (B, T, ...) instead of (N, ...), and the one-hot policy of each site.
        """
        return forward(self, lambda run: _watch(run, self.model.path), clip, key, train, kwargs)


def insert(
    model: nn.Module,
    sites: Mapping[str, str],
    frame: tuple[int, ...],
    call: Mapping[str, Any],
    options: tuple[tuple[str, Any], ...],
) -> FusedModel:
    """See `insert_fusion`."""
    known, weights, found = set(), {}, []

    def name_of(name, module):
        known.add(name)

    def weigh(name, module):
        if name in {*sites, *sites.values()} and isinstance(module, nn.Conv | nn.Dense):
            weights[name] = sum(p.size for p in jax.tree.leaves(module.variables["params"]))

    def look(key, frames):
        rngs = {"params": key, "dropout": key}
        with _watch(None, (), name_of):
            model.init(rngs, frames, **call)
        run, features = of.probe(sites, len(frames))
        for name in run.names:
            if name not in known:
                raise of.unknown_module(name, known)
        with _watch(run, (), weigh):
            model.init(rngs, frames, **call)
        found.extend(of.found(run, features, weights))

    jax.eval_shape(look, jax.random.key(0), jax.ShapeDtypeStruct((2, *frame), jnp.float32))
    return FusedModel(model, tuple(found), frame, options)
