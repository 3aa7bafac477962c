"""Temporal fusion inside a Flax NNX model."""

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key, Shaped

from adafuse_jax.errors import UserError
from adafuse_jax.insert import sites as of
from adafuse_jax.insert.fused import Fused, Policies, forward
from adafuse_jax.layers import TemporalFusion

# {id of a module: (its path, the run it takes part in)}, in the thread that runs.
_WATCHED: ContextVar[Mapping[int, tuple[str, of.Run]]] = ContextVar("watched")
# A module is watched by giving it another class for a while: by one thread at a time.
_LOCK = threading.RLock()


@functools.cache
def _watched(cls: type[nnx.Module]) -> type[nnx.Module]:
    class Watched(cls):
        def __call__(self, *args, **kwargs):
            call = super().__call__
            if id(self) not in _WATCHED.get({}):
                return call(*args, **kwargs)
            name, run = _WATCHED.get({})[id(self)]
            return run.call(name, call, args, kwargs)

    Watched.__name__, Watched.__qualname__ = cls.__name__, cls.__qualname__
    return Watched


@contextlib.contextmanager
def _watching(model: nnx.Module, run: of.Run) -> Iterator[None]:
    """Lets the calls of the sites' modules go through `run`; NNX has no hook for that."""
    modules = {name: _module(model, name) for name in run.names}
    watched = {id(module): (name, run) for name, module in modules.items()}
    for name, module in modules.items():
        if watched[id(module)][0] != name:
            raise UserError(
                f"sites: expected one path a module, found {name!r} and {watched[id(module)][0]!r}"
            )
        if id(module) in _WATCHED.get({}):
            raise UserError(f"{name!r}: expected a module of no other fused model's sites")
    with _LOCK:
        classes = {name: type(module) for name, module in modules.items()}
        token = _WATCHED.set({**_WATCHED.get({}), **watched})
        try:
            for name, module in modules.items():
                # Not by assignment, which NNX forbids in a trace that didn't make the module.
                object.__setattr__(module, "__class__", _watched(classes[name]))
            yield
        finally:
            for name, module in modules.items():
                object.__setattr__(module, "__class__", classes[name])
            _WATCHED.reset(token)


def _module(model: nnx.Module, path: str) -> nnx.Module:
    """The module at a dotted path; raises UserError where there is none."""
    node = model
    for part in path.split("."):
        node = {str(key): child for key, child in nnx.iter_children(node)}.get(part)
        if node is None:
            break
    if not isinstance(node, nnx.Module) or not callable(node):
        known = (".".join(map(str, path)) for path, m in nnx.iter_modules(model) if path and callable(m))
        raise of.unknown_module(path, known)
    return node


class FusedModel(Fused, nnx.Module):
    """A model of frames with temporal fusion at its sites: see `insert_fusion`."""

    def __init__(
        self,
        model: nnx.Module,
        sites: tuple[of.Site, ...],
        frame: tuple[int, ...],
        options: tuple[tuple[str, Any], ...],
        *,
        rngs: nnx.Rngs,
    ):
        self.model, self.sites, self.frame, self.options = model, sites, frame, options
        self.fusions = nnx.Dict(
            {s.first: TemporalFusion(s.in_features, s.features, rngs=rngs, **dict(options)) for s in sites}
        )

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
            train: batch statistics in the policy networks, and their running statistics updated. Handed
                on to a model whose call has an argument `train`.
            **kwargs: handed on to the model.

        Returns:
            What the model gives, (B, T, ...) instead of (N, ...), and the one-hot policy of each site.
        """
        return forward(self, lambda run: _watching(self.model, run), clip, key, train, kwargs)


def insert(
    model: nnx.Module,
    sites: Mapping[str, str],
    frame: tuple[int, ...],
    call: Mapping[str, Any],
    rngs: nnx.Rngs,
    options: tuple[tuple[str, Any], ...],
) -> FusedModel:
    """See `insert_fusion`."""
    graph, state = nnx.split(model)
    found = []

    def look(state, frames):
        copy = nnx.merge(graph, state)
        run, features = of.probe(sites, len(frames))
        with _watching(copy, run):
            copy(frames, **call)
        modules = {name: _module(copy, name) for name in run.names}
        weights = {
            name: module.kernel.size + (0 if module.bias is None else module.bias.size)
            for name, module in modules.items()
            if isinstance(module, nnx.Conv | nnx.Linear)
        }
        found.extend(of.found(run, features, weights))

    jax.eval_shape(look, state, jax.ShapeDtypeStruct((2, *frame), jnp.float32))
    return FusedModel(model, tuple(found), frame, options, rngs=rngs)
