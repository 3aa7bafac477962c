"""The baseline "AR-Net" of the paper's tables: for every frame a resolution with its own net, or a skip.

Source: Meng et al., "AR-Net: Adaptive Frame Resolution for Efficient Action Recognition", ECCV 2020, and its
published code, as its ResNet scripts run it (`--policy_also_backbone`, `--use_gflops_loss`).
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from adafuse_jax.layers import normal
from adafuse_jax.models.lstm import LSTM
from adafuse_jax.models.recognizer import Backbone, Output, check_call, dropped, hashable
from adafuse_jax.ops import costs, resolution

SITE = "resolution"


class Size(NamedTuple):
    """What an AR-Net is made of: names of backbones, resolutions, keywords of `MobileNetV2`, LSTM's size."""

    backbones: tuple[str, ...]
    resolutions: tuple[int, ...]
    glance: Mapping[str, Any]
    lstm_hidden: int


# By the name of the largest backbone; "r50" as published, "tiny" for small images and small machines.
SIZES = {
    "r50": Size(("r50", "r34", "r18"), (224, 168, 112, 84), {}, 512),
    "tiny": Size(
        ("tiny", "tiny", "tiny"),
        (48, 36, 24, 18),
        {"stages": ((1, 8, 1, 1), (6, 12, 2, 2)), "stem": 8, "features": 32},
        32,
    ),
}


class ARNet(nnx.Module):
    """A policy network that looks at small frames and chooses, and a backbone for each larger resolution.

    The policy network (`glance`, then an LSTM) is itself the net of the smallest resolution. The logits are
    the mean over the frames that aren't skipped, zeros where all are. Everything is computed and masked; what
    the choices cost is counted. Resolutions are shares of the clip's own size: a clip of `resolutions[0]`
    pixels is seen at just these.

    Deviations from the published code: the cell of the LSTM, too, is held over skipped frames (unless
    `hold_cell` is False), and the temperature is constant (published: 5 * exp(-0.045 * epoch)).

    Args:
        name: in the zoo.
        options: every option it was made with.
        backbones: of all resolutions but the smallest.
        glance: backbone of the policy network.
        num_classes: outputs.
        resolutions: pixels a side, falling; one more than there are backbones.
        skips: numbers of frames that it may skip.
        lstm_hidden: size of the LSTM's state.
        tau: temperature of the straight-through gradient.
        hold_cell: see `ops.resolution.choose`.
        dropout: rate on the features of all nets.
        dtype: of the computation; None: the input's.
        rngs: for the initial weights; the linear layers' are N(0, 0.001).
    """

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        backbones: Sequence[Backbone],
        glance: Backbone,
        num_classes: int,
        *,
        resolutions: Sequence[int],
        skips: Sequence[int] = (1, 2, 4),
        lstm_hidden: int,
        tau: float,
        hold_cell: bool,
        dropout: float,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.name, self._options = name, hashable(options)
        self.num_classes, self.dropout, self.tau, self.hold_cell = num_classes, dropout, tau, hold_cell
        self.resolutions = tuple(resolutions)
        self.actions = (*map(str, resolutions), *(f"skip{k}" for k in skips))
        self.lengths = (*(1 for _ in resolutions), *skips)

        def linear(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, kernel_init=normal(0.001), dtype=dtype, rngs=rngs)

        self.backbones, self.glance = nnx.List(backbones), glance
        self.rnn = LSTM(glance.features, lstm_hidden, rngs=rngs)
        self.decide = linear(lstm_hidden, len(self.actions))
        self.heads = nnx.List([linear(net.features, num_classes) for net in (*backbones, self.rnn)])

    def __call__(
        self, clip: Float[Array, "b t h w 3"], key: Key[Array, ""] | None = None, train: bool = False
    ) -> Output:
        """Classifies clips; see `Recognizer`."""
        check_call(clip, key, train)
        policy_key, dropout_key = (None, None) if key is None else jax.random.split(key)

        def features(i: int, net: Backbone) -> Float[Array, "b t features"]:
            found, _ = net(resolution.nearest(clip, self._size(i, clip.shape[2:4])), None, train)
            return dropped(found, self.dropout, jax.random.fold_in(dropout_key, i)) if train else found

        seen = [features(i, net) for i, net in enumerate(self.backbones)]
        glanced = features(len(seen), self.glance)
        choices, states = resolution.choose(
            glanced.astype(jnp.promote_types(glanced.dtype, jnp.float32)),
            self.rnn.weights,
            self.decide.kernel[...],
            self.decide.bias[...],
            lengths=self.lengths,
            key=policy_key,
            tau=self.tau,
            hold_cell=self.hold_cell,
        )
        logits = jnp.stack([head(x) for head, x in zip(self.heads, [*seen, states], strict=True)], 2)
        used = choices[..., : len(self.resolutions)]
        frame_logits = (logits.astype(choices.dtype) * used[..., None]).sum(2)
        count = used.sum((1, 2))[:, None]
        mean = frame_logits.sum(1) / jnp.where(count > 0.5, count, 1)
        return Output(mean, frame_logits, OrderedDict({SITE: choices[:, :, None]}))

    @property
    def options(self) -> dict[str, Any]:
        """Every option it was made with."""
        return dict(self._options)

    def stage_of(self, site: str) -> str:
        """The site itself: it chooses among whole nets."""
        return site

    def count(self, hw: tuple[int, int]) -> costs.FrameCost:
        """MACs of one frame of `hw` pixels: the policy network and, dense, the largest resolution."""
        policy = self.glance.count(self._size(len(self.backbones), hw)).dense + self.rnn.macs
        policy += costs.linear_macs(self.decide.in_features, self.decide.out_features)
        spent = [costs.linear_macs(head.in_features, head.out_features) for head in self.heads]
        for i, net in enumerate(self.backbones):
            spent[i] += net.count(self._size(i, hw)).dense
        skips = (0,) * (len(self.actions) - len(spent))
        site = costs.ChoiceCost((*spent, *skips), policy, self.lengths)
        return costs.FrameCost(policy + spent[0], {SITE: site})

    def _size(self, i: int, hw: tuple[int, int]) -> tuple[int, int]:
        return tuple(max(1, side * self.resolutions[i] // self.resolutions[0]) for side in hw)
