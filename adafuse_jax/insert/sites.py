"""The sites of one forward pass: what their modules read and give, and in which order, in any framework."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from flax.errors import TraceContextError
from jaxtyping import Array

from adafuse_jax.errors import UserError, unknown
from adafuse_jax.ops import costs


class Site(NamedTuple):
    """Two modules by their paths, the channels of x and y, and the MACs per frame where known.

    `macs` are those of the first module and of the second; None for what is neither a convolution nor a
    linear layer.
    """

    first: str
    second: str
    in_features: int
    features: int
    macs: tuple[int | None, int | None]

    @property
    def cost(self) -> costs.SiteCost:
        """What the site can save; raises UserError where the MACs aren't known."""
        for name, macs in zip((self.first, self.second), self.macs, strict=True):
            if macs is None:
                raise UserError(f"{name!r}: expected a convolution or linear layer, to count its MACs")
        return costs.SiteCost(((self.features, self.macs[0]),), self.macs[1])


def check(sites: Mapping[str, str]) -> dict[str, str]:
    """{first: second}; raises UserError where that is no mapping, or a module is read for two sites."""
    if not isinstance(sites, Mapping) or not sites:
        raise UserError(f"sites: expected {{first module: second module}}, found {sites!r}")
    seconds = list(sites.values())
    for first, second in sites.items():
        if first == second or seconds.count(second) > 1:
            raise UserError(f"sites: expected another second module for {first!r} than {second!r}")
    return dict(sites)


def unknown_module(path: str, known: Iterable[str]) -> UserError:
    """The error for a path that isn't among `known`, which names those beside it."""
    known, parents = list(known), path.split(".")[:-1]
    while parents and not any(name.startswith(".".join(parents) + ".") for name in known):
        parents.pop()
    prefix = "".join(f"{part}." for part in parents)
    depth = len(parents) + 1
    return unknown("module", path, {".".join(k.split(".")[:depth]) for k in known if k.startswith(prefix)})


class Run:
    """One forward pass of a model on frames.

    Args:
        sites: {first: second}.
        num_frames: in the batch, N.
        fuse: (site's first, x, y) -> what the second module is to read, and the policy.
    """

    def __init__(
        self,
        sites: Mapping[str, str],
        num_frames: int,
        fuse: Callable[[str, Array, Array], tuple[Array, Array]],
    ):
        self.sites, self.num_frames, self.fuse = sites, num_frames, fuse
        self.site_of = {second: first for first, second in sites.items()}
        self.read: dict[str, Array] = {}
        self.given: dict[str, tuple[int, ...]] = {}
        self.policies: dict[str, Array] = {}
        # A module of NNX changes only in the trace that made it: this one tells whether we are still there.
        self._here = nnx.Module()

    @property
    def names(self) -> list[str]:
        """The paths of all modules of the sites."""
        return list(dict.fromkeys(name for site in self.sites.items() for name in site))

    def call(self, name: str, function: Callable, args: tuple, kwargs: dict) -> Any:
        """The call of the module `name`, one of `names`.

        Raises:
            UserError: for a second call, the second module of a site before the first, a call within a
                transformation of the model's own, or without the frames as first argument.
        """
        if name in self.read:
            raise UserError(f"{name!r}: expected one call in a forward pass, found two")
        try:
            self._here.name = name
        except TraceContextError as error:
            raise UserError(
                f"{name!r}: expected outside of the model's own jit, remat, scan, vmap"
            ) from error
        if not args or jnp.shape(args[0])[:1] != (self.num_frames,):
            found = f"an array {jnp.shape(args[0])}" if args else "none"
            raise UserError(f"{name!r}: expected {self.num_frames} frames as first argument, found {found}")
        x = args[0]
        if name in self.site_of:
            x = self._fused(self.site_of[name], name, x)
        self.read[name] = x
        out = function(x, *args[1:], **kwargs)
        self.given[name] = getattr(out, "shape", ())
        return out

    def _fused(self, first: str, second: str, y: Array) -> Array:
        if first not in self.given:
            raise UserError(f"{second!r}: expected to run after {first!r}, found before or without it")
        if self.given[first][-1:] != y.shape[-1:]:
            raise UserError(
                f"{second!r}: expected to read the channels that {first!r} gives, "
                f"found {y.shape} after {self.given[first]}"
            )
        fused, self.policies[first] = self.fuse(first, self.read[first], y)
        return fused

    def finish(self) -> OrderedDict[str, Array]:
        """The policies in the order of the sites, once the model has run.

        Raises:
            UserError: unless all modules were called.
        """
        for name in self.names:
            if name not in self.read:
                raise UserError(f"{name!r}: expected one call in a forward pass, found none")
        return OrderedDict((first, self.policies[first]) for first in self.sites)


def probe(sites: Mapping[str, str], num_frames: int) -> tuple[Run, dict[str, tuple[int, int]]]:
    """A run that fuses nothing, and the channels of x and y of its sites once it has finished."""
    features = {}

    def look(first, x, y):
        features[first] = x.shape[-1], y.shape[-1]
        return y, y

    return Run(sites, num_frames, look), features


def found(run: Run, features: Mapping[str, tuple[int, int]], weights: Mapping[str, int]) -> tuple[Site, ...]:
    """The sites of a finished probe, given the weights of its convolutions and linear layers."""
    run.finish()
    macs = {}
    for name, shape in run.given.items():
        positions = 1
        for side in shape[1:-1]:
            positions *= side
        macs[name] = weights[name] * positions if name in weights else None
    return tuple(
        Site(first, second, *features[first], (macs[first], macs[second]))
        for first, second in run.sites.items()
    )
