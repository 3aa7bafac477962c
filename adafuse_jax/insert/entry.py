"""`insert_fusion`: AdaFuse for a model of frames, by the names of its modules."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
from flax import nnx

from adafuse_jax.errors import UserError, unknown
from adafuse_jax.insert import linen
from adafuse_jax.insert import nnx as of_nnx
from adafuse_jax.insert.sites import check
from adafuse_jax.ops import actions as act

OPTIONS = ("hidden", "actions", "tau", "group_size", "detach_history", "prior", "prior_strength")


def insert_fusion(
    model: nnx.Module | nn.Module,
    sites: Mapping[str, str],
    frame: Sequence[int],
    *,
    rngs: nnx.Rngs | None = None,
    call: Mapping[str, Any] | None = None,
    **options: Any,
) -> "of_nnx.FusedModel | linen.FusedModel":
    """Puts temporal fusion into a model that gives something for each frame: (N, H, W, C) -> (N, ...).

        fused = insert_fusion(model, {"block1.conv1": "block1.conv2"}, (224, 224, 3), rngs=nnx.Rngs(0))
        out, policies = fused(clip, key=key, train=True)

    A site has two modules. The policy sees what the first reads, x; fused is what the second reads, y: the
    output of the first after whatever norm and activation lie between (paper, section 3). Nothing else
    reads the fused map. The model itself stays as it is, and its weights are the fused model's.

    It is run once without computing, to find the sizes and what can't be.

    Args:
        model: of Flax NNX or Linen.
        sites: {path of the first module: path of the second}, such as "layers.0.conv1".
        frame: (H, W, C) of a frame. Only C binds; H and W are those that `costs` are for.
        rngs: for the policies' initial weights; NNX only.
        call: keyword arguments without which the model doesn't run.
        **options: `hidden`, `actions`, `tau`, `group_size`, `detach_history`, `prior` and `prior_strength`
            of every `TemporalFusion`.

    Returns:
        A module of the same framework, with the parameters of `model` under `model` and those of the
        policies under `fusions` (Linen: `fusions_` and the site's name), the site costs in `costs`, and
        `savings`. See its `__call__`.

    Raises:
        UserError: for an unknown path or option; a module that runs never, twice, in another order or
            within the model's own jit, remat, scan or vmap; a map of other channels than the first gives.
    """
    for option in options:
        if option not in OPTIONS:
            raise unknown("option of TemporalFusion", option, OPTIONS)
    sites, frame, call = check(sites), tuple(frame), dict(call or {})
    options["actions"] = act.check(options.get("actions", act.ALL))
    if options.get("prior") is not None:
        options["prior"] = tuple(options["prior"])
    pairs = tuple(options.items())
    if isinstance(model, nn.Module):
        return linen.insert(model, sites, frame, call, pairs)
    if not isinstance(model, nnx.Module):
        raise UserError(f"model: expected a module of Flax NNX or Linen, found {type(model).__name__}")
    if rngs is None:
        raise UserError("rngs: expected nnx.Rngs for the policies' weights, found None")
    return of_nnx.insert(model, sites, frame, call, rngs, pairs)
