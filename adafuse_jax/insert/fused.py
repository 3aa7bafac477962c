"""What the fused models of both frameworks share: a forward pass on clips, and what its policies save."""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from adafuse_jax.errors import UserError
from adafuse_jax.insert.sites import Run, Site
from adafuse_jax.ops import costs

Policies = OrderedDict[str, Float[Array, "b t c actions"]]


class Fused:
    """Base of the fused models.

    `options` are the keywords of every `TemporalFusion`, in pairs: jit hashes what isn't an array.
    """

    model: Any
    sites: tuple[Site, ...]
    frame: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]
    fusions: Mapping[str, Callable]

    @property
    def costs(self) -> dict[str, costs.SiteCost]:
        """What each site can save, in MACs per frame of the size given to `insert_fusion`."""
        return {site.first: site.cost for site in self.sites}

    def savings(self, policies: Mapping[str, Float[Array, "b t c actions"]]) -> Float[Array, " b"]:
        """MACs per clip that the policies save (Eq. 5), to add to a loss: differentiable.

        Raises:
            UserError: for other sites' policies, or where a site's module is no convolution or linear layer.
        """
        if set(policies) != {site.first for site in self.sites}:
            raise UserError(f"policies: expected {[s.first for s in self.sites]}, found {list(policies)}")
        total = 0.0
        for site in self.sites:
            policy = policies[site.first]
            before, after = costs.savings(policy, site.cost, dict(self.options)["actions"])
            total += (before + after) * policy.shape[1]
        return total


def forward(
    fused: Fused,
    watching: Callable[[Run], AbstractContextManager],
    clip: Shaped[Array, "b t h w c"],
    key: Key[Array, ""] | None,
    train: bool,
    kwargs: Mapping[str, Any],
) -> tuple[Any, Policies]:
    """The model on all frames, fused at its sites; see the fused models' `__call__`.

    Args:
        fused: a fused model.
        watching: the context in which the calls of the sites' modules go through a run.
        clip: clips of frames.
        key: for Gumbel noise; the site i has `fold_in(key, i)`.
        train: of the policies and, where it has such an argument, of the model.
        kwargs: of the model.

    Raises:
        UserError: for a clip of another rank or channels, or sites that don't run as `Run` wants them.
    """
    channels = fused.frame[-1]
    if clip.ndim != len(fused.frame) + 2 or clip.shape[-1] != channels or 0 in clip.shape:
        raise UserError(f"clip: expected (B, T, H, W, {channels}), none of them 0, found {clip.shape}")
    b, t = clip.shape[:2]
    order = {site.first: i for i, site in enumerate(fused.sites)}

    def fuse(first, x, y):
        site_key = None if key is None else jax.random.fold_in(key, order[first])
        out, policy = fused.fusions[first](by_clip(x, b, t), by_clip(y, b, t), site_key, train)
        return out.reshape(y.shape), policy

    if "train" in inspect.signature(type(fused.model).__call__).parameters:
        kwargs = {**kwargs, "train": train}
    run = Run({site.first: site.second for site in fused.sites}, b * t, fuse)
    with watching(run):
        out = fused.model(clip.reshape(b * t, *clip.shape[2:]), **kwargs)
    return by_clip(out, b, t), run.finish()


def by_clip(tree: Any, b: int, t: int) -> Any:
    """(B T, ...) -> (B, T, ...), for all arrays of a tree that have an entry a frame."""

    def split(leaf):
        return leaf.reshape(b, t, *leaf.shape[1:]) if jnp.shape(leaf)[:1] == (b * t,) else leaf

    return jax.tree.map(lambda leaf: split(leaf) if hasattr(leaf, "shape") else leaf, tree)
