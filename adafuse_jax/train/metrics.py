"""What a model reached: sums that merge over batches, devices and processes, and mean average precision."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from adafuse_jax.errors import UserError
from adafuse_jax.ops import actions as act
from adafuse_jax.train import histograms
from adafuse_jax.train.losses import clip_cross_entropy, weighted_sum


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["clips", "loss", "top1", "top5", "gmacs", "decisions", "skipped", "frames", "loss_parts"],
    meta_fields=["sites", "actions", "stages"],
)
@dataclasses.dataclass(frozen=True)
class Metrics:
    """Sums over clips; padding (weight 0) is in none of them. A pytree: it leaves a jitted step as it is.

    Attributes:
        clips: weights of the clips.
        loss: cross-entropy in nats, without label smoothing and without the efficiency term.
        top1: hits of the highest logit.
        top5: hits among the five highest logits (all of them with fewer classes).
        gmacs: GMACs spent on the clips under their policies.
        decisions: how often each site (row, in the net's order) took each action (column); a decision is one
            channel of one frame.
        skipped: steps of training whose loss or gradient wasn't finite; none of their clips count.
        sites: names of the rows.
        actions: names of the columns.
        frames: how many frames let each share of a site's channels take each action (`histograms.of_shares`);
            None in training.
        loss_parts: in training, the terms of what is minimised, each times the clips.
        stages: of the sites, or empty.
    """

    clips: Float[Array, ""]
    loss: Float[Array, ""]
    top1: Float[Array, ""]
    top5: Float[Array, ""]
    gmacs: Float[Array, ""]
    decisions: Float[Array, "sites actions"]
    skipped: Float[Array, ""]
    sites: tuple[str, ...]
    actions: tuple[str, ...]
    frames: Float[Array, "sites actions bins"] | None = None
    loss_parts: Mapping[str, Float[Array, ""]] = dataclasses.field(default_factory=dict)
    stages: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        logits: Float[Array, "b classes"],
        labels: Int[Array, " b"],
        weights: Float[Array, " b"],
        macs: Float[Array, " b"],
        policies: Mapping[str, Float[Array, "b t _ actions"]],
        actions: Sequence[str] = act.ALL,
        stages: Sequence[str] = (),
    ) -> "Metrics":
        """Metrics of one batch; pure, to be called inside the compiled step.

        Args:
            logits: mean over the frames of a clip. Equal logits rank by class number.
            labels: class of each clip; anything where the weight is 0.
            weights: 1 for a clip, 0 for padding.
            macs: MACs per clip under its policies.
            policies: one-hot decisions of each site; empty for a net without policies.
            actions: names of the last axis of the policies.
            stages: of each site, where shares are wanted by them too.
        """
        ranked = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]
        hits = (ranked == labels[:, None]).astype(jnp.float32)
        decisions = [weighted_sum(p.astype(jnp.float32).sum((1, 2)), weights) for p in policies.values()]
        frames = [histograms.of_shares(p, weights) for p in policies.values()]
        return cls(
            clips=weights.sum(),
            loss=weighted_sum(clip_cross_entropy(logits, labels), weights),
            top1=weighted_sum(hits[:, 0], weights),
            top5=weighted_sum(hits.sum(-1), weights),
            gmacs=weighted_sum(macs / 1e9, weights),
            decisions=jnp.stack(decisions) if decisions else jnp.zeros((0, len(actions))),
            skipped=jnp.zeros(()),
            sites=tuple(policies),
            actions=tuple(actions),
            frames=jnp.stack(frames) if frames else jnp.zeros((0, len(actions), histograms.BINS)),
            stages=tuple(stages),
        )

    def unless_skipped(self, finite: Bool[Array, ""]) -> "Metrics":
        """These of a step, or, where it wasn't finite and so was skipped, those of no clip."""
        kept = jax.tree.map(lambda a: jnp.where(finite, a, 0), self)
        return dataclasses.replace(kept, skipped=1.0 - finite)

    def with_loss_parts(self, parts: Mapping[str, Float[Array, ""]]) -> "Metrics":
        """The same of a step of training, with the terms of its loss, means over the clips.

        Without the histograms, which only evaluations show.
        """
        sums = {name: value * self.clips for name, value in parts.items()}
        return dataclasses.replace(self, loss_parts=sums, frames=None)

    def merge(self, other: "Metrics") -> "Metrics":
        """Metrics of both sets of clips together; the nets must have the same sites and actions."""
        return jax.tree.map(lambda a, b: a + b, self, other)

    def compute(self) -> dict[str, Any]:
        """Means over the clips, as plain numbers.

        Returns:
            `clips`; `loss` (nats); `top1` and `top5` (0 to 1); `gmacs_per_clip`; `shares`: the share of all
            decisions that were skip, reuse and keep (0 for an action the policy can't choose; a net without
            policies keeps everything), or each action of a net that has others; `stages` and `sites`: the
            same for each; in training `loss_parts`, the mean of each term of what is minimised.

        Raises:
            UserError: where there was no clip.
        """
        clips = float(self.clips)
        if clips == 0:
            raise UserError("metrics: expected at least one clip, found none")
        decisions = np.asarray(self.decisions, np.float64)
        means = {name: float(getattr(self, name)) / clips for name in ("loss", "top1", "top5", "gmacs")}
        means["gmacs_per_clip"] = means.pop("gmacs")
        if self.loss_parts:
            means["loss_parts"] = {name: float(v) / clips for name, v in self.loss_parts.items()}
        return {
            "clips": clips,
            **means,
            "shares": self._shares(decisions.sum(0)),
            "stages": {
                name: self._shares(decisions[np.asarray(self.stages) == name].sum(0))
                for name in dict.fromkeys(self.stages)
            },
            "sites": {name: self._shares(row) for name, row in zip(self.sites, decisions, strict=True)},
        }

    def histograms(self) -> dict[str, dict[str, list[float]]]:
        """{site: {action: frames in each of ten bins by the share of channels that took it}}."""
        if self.frames is None:
            return {}
        return {
            site: dict(zip(self.actions, np.asarray(frames, np.float64).tolist(), strict=True))
            for site, frames in zip(self.sites, self.frames, strict=True)
        }

    def _shares(self, counts: np.ndarray) -> dict[str, float]:
        if not self.sites:
            return {name: float(name == "keep") for name in act.ALL}
        found = dict(zip(self.actions, (counts / counts.sum()).tolist(), strict=True))
        names = act.ALL if set(found) <= set(act.ALL) else self.actions
        return {name: found.get(name, 0.0) for name in names}


class Scores:
    """Logits and labels of all clips seen, on the host, for metrics that rank clips against each other."""

    def __init__(self):
        self._logits: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []

    def append(
        self,
        logits: Float[np.ndarray, "b classes"],
        labels: Int[np.ndarray, " b *labels"],
        weights: Float[np.ndarray, " b"],
    ) -> None:
        """Adds the clips of a batch whose weight is above 0."""
        real = np.asarray(weights) > 0
        self._logits.append(np.asarray(logits, np.float32)[real])
        self._labels.append(np.asarray(labels)[real])

    def unless_skipped(self, finite: Bool[Array, ""]) -> "Metrics":
        """These of a step, or, where it wasn't finite and so was skipped, those of no clip."""
        kept = jax.tree.map(lambda a: jnp.where(finite, a, 0), self)
        return dataclasses.replace(kept, skipped=1.0 - finite)

    def merge(self, other: "Scores") -> "Scores":
        """The clips of both."""
        merged = Scores()
        merged._logits = self._logits + other._logits
        merged._labels = self._labels + other._labels
        return merged

    def mean_average_precision(self) -> float:
        """`mean_average_precision` (0 to 1) of all clips.

        Raises:
            UserError: where there was no clip.
        """
        if not self._logits:
            raise UserError("mean average precision: expected at least one clip, found none")
        return mean_average_precision(np.concatenate(self._logits), np.concatenate(self._labels))


def mean_average_precision(
    logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n *labels"], published: bool = False
) -> float:
    """Average precision of ranking all clips by a class's probability, averaged over classes; 0 to 1.

    AP of a class is the mean, over its clips, of the precision among the clips that score at least as high.
    Equal scores so count together, and the order of the clips doesn't matter.

    Args:
        logits: scores of n clips.
        labels: one class a clip, or a row of classes padded with -1.
        published: as the published code computes it: labels are first renumbered 0, 1, ... in the order of
            those present (wrong wherever a class is missing), and classes without a clip count as AP 0.
            By default such classes are left out of the mean.

    Raises:
        UserError: where no clip has a label, or a label is no class.
    """
    labels = np.asarray(labels).reshape(len(labels), -1)
    classes = logits.shape[1]
    present = np.unique(labels[labels >= 0])
    if present.size == 0 or present[-1] >= classes:
        found = f"label {present[-1]}" if present.size else "no label"
        raise UserError(f"mean average precision: expected labels from 0 to {classes - 1}, found {found}")
    # Logits rank the classes of one clip; only probabilities (or their logarithms, which don't saturate)
    # rank clips against each other.
    scores = logits.astype(np.float64)
    scores = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    precisions = [
        _average_precision(scores[:, rank if published else label], (labels == label).any(1))
        for rank, label in enumerate(present)
    ]
    return float(np.sum(precisions) / (classes if published else len(present)))


def _average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    ranked, ranked_positive = np.sort(scores), np.sort(scores[positive])

    def at_least(sorted_scores):
        return len(sorted_scores) - np.searchsorted(sorted_scores, ranked_positive, side="left")

    return float(np.mean(at_least(ranked_positive) / at_least(ranked)))
