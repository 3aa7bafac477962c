"""The baseline "TRN" of the paper's tables: relations among the frames of a clip, at several time scales.

Source: Zhou et al., "Temporal Relational Reasoning in Videos", ECCV 2018, section 3, and its published code
(TRNmodule.py, `RelationModuleMultiScale`).
"""

import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from adafuse_jax.errors import UserError
from adafuse_jax.layers import uniform
from adafuse_jax.ops import costs

FEATURES = 256  # of a frame, as published
HIDDEN = 256  # of every relation
TUPLES = 3  # at most so many of each scale


class Relations(nnx.Module):
    """Frame features -> logits of the clip: the sum of its relations among T, T-1, ..., 2 frames.

    A relation of scale s reads s frames in their order: W2 ReLU(W1 ReLU([x_i1, ..., x_is]) + b1) + b2, the
    same for all tuples i1 < ... < is of its scale. At most three of them count: drawn under a key, alike for
    all clips of a batch (as published, in testing too); without a key the middles of three equal parts of
    all tuples in lexicographic order. Weights start uniform in +-1/sqrt(inputs), as PyTorch's linear layers.

    Args:
        in_features: of a frame.
        num_frames: T.
        num_classes: outputs.
        rngs: for the initial weights.

    Raises:
        UserError: for fewer than 2 frames.
    """

    def __init__(self, in_features: int, num_frames: int, num_classes: int, *, dtype=None, rngs: nnx.Rngs):
        if num_frames < 2:
            raise UserError(f"num_frames: expected at least 2, found {num_frames}")
        self.num_frames = num_frames
        self.scales = tuple(range(num_frames, 1, -1))

        def linear(inputs: int, outputs: int) -> nnx.Linear:
            init = uniform(1 / math.sqrt(inputs))
            return nnx.Linear(inputs, outputs, kernel_init=init, bias_init=init, dtype=dtype, rngs=rngs)

        self.fc0 = nnx.List([linear(s * in_features, HIDDEN) for s in self.scales])
        self.fc1 = nnx.List([linear(HIDDEN, num_classes) for _ in self.scales])

    def __call__(
        self, x: Float[Array, "b t i"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "b classes"]:
        """The logits of clips.

        Raises:
            UserError: for clips of another number of frames.
        """
        if x.shape[1] != self.num_frames:
            raise UserError(
                f"clip: expected {self.num_frames} frames, the model's num_frames, found {x.shape[1]}"
            )
        logits = 0.0
        for scale, fc0, fc1 in zip(self.scales, self.fc0, self.fc1, strict=True):
            chosen = self.chosen(scale, None if key is None else jax.random.fold_in(key, scale))
            tuples = x[:, chosen].reshape(len(x), len(chosen), -1)
            logits += fc1(jax.nn.relu(fc0(jax.nn.relu(tuples)))).sum(1)
        return logits

    def chosen(self, scale: int, key: Key[Array, ""] | None = None) -> Array:
        """The frames of the tuples of a scale that count, (at most 3, scale)."""
        tuples = jnp.asarray(list(itertools.combinations(range(self.num_frames), scale)))
        count = min(TUPLES, len(tuples))
        if key is None:
            return tuples[jnp.arange(1, 2 * count, 2) * len(tuples) // (2 * count)]
        return tuples[jax.random.choice(key, len(tuples), (count,), replace=False)]

    @property
    def macs(self) -> int:
        """MACs of a frame: a T-th of the clip's, rounded up."""
        total = 0
        for scale, fc0, fc1 in zip(self.scales, self.fc0, self.fc1, strict=True):
            layers = (fc0, fc1)
            once = sum(costs.linear_macs(fc.in_features, fc.out_features) for fc in layers)
            total += min(TUPLES, math.comb(self.num_frames, scale)) * once
        return -(-total // self.num_frames)
