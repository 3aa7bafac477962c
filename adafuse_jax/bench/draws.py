"""Policies drawn with given shares, in place of those that a model finds: no training is needed."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from adafuse_jax.errors import UserError
from adafuse_jax.layers import TemporalFusion
from adafuse_jax.models.recognizer import Recognizer
from adafuse_jax.models.sites import RandomPolicy
from adafuse_jax.ops import actions as act

_CERTAIN = 1e9  # above all that a network's last layer gives


class Drawn:
    """A model whose channels act as drawn, each for itself at every frame, the same at each call.

    A policy network still computes all that it does: the draw is the bias of its last layer, so large that
    nothing outweighs it. Random policies get the shares as theirs.

    Args:
        model: of the zoo, with policy networks or random policies; it isn't changed.
        shares: of skip, reuse and keep.
        batch: number of clips.
        num_frames: T.
        seed: of the draws.

    Attributes:
        model: for clips (batch, num_frames, H, W, 3) alone.
        first: for the first frame of streams; `at` gives it the weights for the others.

    Raises:
        UserError: for a model without such policies, or shares that can't be.
    """

    def __init__(
        self, model: Recognizer, shares: Sequence[float], batch: int, num_frames: int, seed: int = 0
    ):
        self.model, self.first = nnx.clone(model), nnx.clone(model)
        sites = list(zip(_sites(self.model), _sites(self.first), strict=True))
        if not sites:
            raise UserError(
                "policy: expected a model with policy networks or random policies to draw for, found "
                f"{model.name!r}"
            )
        wanted, random = _of(model.actions, tuple(shares)), np.random.default_rng(seed)
        # Biases of the first frame -> those of each, by their identity: copies of a model keep arrays.
        self._frames: dict[int, list[Array]] = {}
        for site, first in sites:
            if isinstance(site, RandomPolicy):
                site.shares = first.shares = wanted
                continue
            groups = site.features // site.group_size
            drawn = random.choice(len(wanted), (batch, num_frames, groups), p=wanted)
            one_hot = np.eye(len(wanted), dtype=np.float32)[drawn]
            bias = jnp.asarray(_CERTAIN * one_hot.reshape(batch, num_frames, -1))
            frames = [bias[:, t] for t in range(num_frames)]
            self._frames[id(frames[0])] = frames
            first.fc1, site.fc1 = _with_bias(site.fc1, frames[0]), _with_bias(site.fc1, bias)

    def at(self, weights: tuple[Array, ...], frame: int) -> tuple[Array, ...]:
        """The weights of a `Stream` of `first` for frame `frame` of its clips."""
        met = []

        def of_frame(array: Array) -> Array:
            if id(array) not in self._frames:
                return array
            met.append(id(array))
            return self._frames[id(array)][frame]

        replaced = jax.tree.map(of_frame, weights)
        if sorted(met) != sorted(self._frames):
            raise RuntimeError(f"expected the biases of {len(self._frames)} sites, found {len(met)}")
        return replaced


def _sites(model: nnx.Module) -> list[TemporalFusion | RandomPolicy]:
    return [m for _, m in nnx.iter_modules(model) if isinstance(m, TemporalFusion | RandomPolicy)]


def _of(actions: Sequence[str], shares: tuple[float, ...]) -> tuple[float, ...]:
    """The shares of the actions that a model has."""
    if len(shares) != len(act.ALL) or not all(s >= 0 for s in shares) or abs(sum(shares) - 1) > 1e-6:
        raise UserError(
            f"policy: expected shares of {', '.join(act.ALL)} that add up to 1, found {_text(shares)}"
        )
    of = dict(zip(act.ALL, shares, strict=True))
    if any(share for action, share in of.items() if action not in actions):
        raise UserError(
            f"policy: expected shares of {', '.join(actions)} alone, what the model can do, found "
            f"{_text(shares)}"
        )
    kept = np.array([of[action] for action in actions])
    return tuple((kept / kept.sum()).tolist())


def _text(shares: Sequence[float]) -> str:
    return ",".join(f"{share:g}" for share in shares)


def _with_bias(layer: nnx.Linear, bias: Float[Array, "*b o"]) -> nnx.Linear:
    """A layer of the same kernel; sites that share theirs draw each for itself."""
    layer = nnx.clone(layer)
    layer.bias = nnx.Param(bias)
    return layer
