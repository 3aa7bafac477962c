"""A backbone on frames, a classifier on frame features, and the mean over frames (TSN's consensus)."""

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from adafuse_jax.errors import UserError
from adafuse_jax.layers import normal
from adafuse_jax.models.lstm import LSTM
from adafuse_jax.models.trn import FEATURES, Relations
from adafuse_jax.ops import costs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """What a model says about clips.

    Attributes:
        logits: the mean over frames, (B, num_classes).
        frame_logits: (B, T, num_classes). TRN, which has none of single frames, repeats `logits`. AR-Net:
            zeros for the frames it skips, and `logits` is the mean over the others.
        policies: {site: one-hot (B, T, channels, actions)}, in the order of the sites; empty without
            fusion. Under a key they carry the straight-through gradient. AR-Net: one "resolution" of one
            channel.
    """

    logits: Float[Array, "b classes"]
    frame_logits: Float[Array, "b t classes"]
    policies: OrderedDict[str, Float[Array, "b t c actions"]]


def check_call(clip: Array, key: Key[Array, ""] | None, train: bool) -> None:
    """Raises UserError for a clip of another shape or of integers, or training without a key."""
    if clip.ndim != 5 or clip.shape[-1] != 3 or 0 in clip.shape:
        raise UserError(f"clip: expected (B, T, H, W, 3), none of them 0, found {clip.shape}")
    if not jnp.issubdtype(clip.dtype, jnp.floating):
        raise UserError(f"clip: expected normalised floats, found {clip.dtype}")
    if train and key is None:
        raise UserError("train=True: expected a key for dropout and sampling, found None")


def dropped(features: Float[Array, "*n c"], rate: float, key: Key[Array, ""]) -> Float[Array, "*n c"]:
    """Dropout: each feature is 0 with probability `rate`, else larger by so much that the mean stays."""
    if not rate:
        return features
    kept = jax.random.bernoulli(key, 1 - rate, features.shape)
    return jnp.where(kept, features / (1 - rate), 0)


def hashable(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Options as jit wants what isn't an array."""
    return tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in options.items())


class Backbone(Protocol):
    """What turns clips into features of frames."""

    features: int

    def __call__(
        self, clip: Float[Array, "b t h w 3"], key: Key[Array, ""] | None, train: bool
    ) -> tuple[Float[Array, "b t features"], OrderedDict[str, Float[Array, "b t c actions"]]]: ...

    def count(self, hw: tuple[int, int]) -> costs.FrameCost: ...

    def stage_of(self, site: str) -> int: ...


class Recognizer(nnx.Module):
    """A named model of the zoo, with the options it was made from.

    With `num_frames`, TRN: `fc` gives 256 features a frame, and relations among them the logits.

    Args:
        name: in the zoo.
        options: every option it was made with.
        backbone: gives frame features and policies.
        num_classes: outputs.
        dropout: rate on the frame features.
        lstm_hidden: size of an LSTM's state between frame features and classifier; None: no LSTM.
        num_frames: T of the clips for TRN's relations; None: no relations, clips of any length.
        actions: what its policies choose from.
        dtype: of the computation; None: the input's.
        rngs: for the initial weights; fc's are N(0, 0.001).
    """

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        backbone: Backbone,
        num_classes: int,
        *,
        dropout: float,
        lstm_hidden: int | None = None,
        num_frames: int | None = None,
        actions: tuple[str, ...],
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.name = name
        self._options = hashable(options)
        self.num_classes, self.dropout, self.actions = num_classes, dropout, actions
        self.backbone = backbone
        self.rnn, self.relations = nnx.data(None), nnx.data(None)
        if lstm_hidden is not None:
            self.rnn = LSTM(backbone.features, lstm_hidden, rngs=rngs)
        if num_frames is not None:
            self.relations = Relations(FEATURES, num_frames, num_classes, dtype=dtype, rngs=rngs)
        self.fc = nnx.Linear(
            lstm_hidden or backbone.features,
            num_classes if num_frames is None else FEATURES,
            kernel_init=normal(0.001),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, clip: Float[Array, "b t h w 3"], key: Key[Array, ""] | None = None, train: bool = False
    ) -> Output:
        """Classifies clips.

        Args:
            clip: normalised frames.
            key: None: the likeliest actions, no dropout. A key: Gumbel-sampled actions, drawn relations.
            train: batch statistics (running ones are updated) and dropout; needs a key.

        Raises:
            UserError: for a clip of another shape (TRN: or number of frames) or of integers, or training
                without a key.
        """
        check_call(clip, key, train)
        policy_key, dropout_key = (None, None) if key is None else jax.random.split(key)
        features, policies = self.backbone(clip, policy_key, train)
        if train:
            features = dropped(features, self.dropout, dropout_key)
        if self.rnn is not None:
            features = self.rnn(features)
        features = self.fc(features)
        precision = jnp.promote_types(features.dtype, jnp.float32)
        if self.relations is not None:
            relation_key = None if key is None else jax.random.fold_in(dropout_key, 0)
            logits = self.relations(features, relation_key).astype(precision)
            return Output(logits, jnp.repeat(logits[:, None], features.shape[1], 1), policies)
        frame_logits = features.astype(precision)
        return Output(frame_logits.mean(1), frame_logits, policies)

    @property
    def options(self) -> dict[str, Any]:
        """Every option it was made with."""
        return dict(self._options)

    def stage_of(self, site: str) -> str:
        """The stage that a site lies in, as `fusion_stages` numbers it: "stage2" of "layer2.1"."""
        return f"stage{self.backbone.stage_of(site)}"

    def count(self, hw: tuple[int, int]) -> costs.FrameCost:
        """MACs of one frame of `hw` pixels, as the published counter counts them."""
        backbone = self.backbone.count(hw)
        head = costs.linear_macs(self.fc.in_features, self.fc.out_features)
        if self.rnn is not None:
            head += self.rnn.macs
        if self.relations is not None:
            head += self.relations.macs
        return backbone._replace(dense=backbone.dense + head)
