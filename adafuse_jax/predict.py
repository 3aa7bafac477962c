"""What a trained model says about a video: classes with probabilities, MACs and actions."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from adafuse_jax.errors import UserError
from adafuse_jax.input import decode, sampling, transforms
from adafuse_jax.input.manifest import Clip
from adafuse_jax.report import summary
from adafuse_jax.train.run import Trained
from adafuse_jax.train.state import put_together
from adafuse_jax.train.step import cost_of, measure, normalize


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A clip's classes and cost.

    Attributes:
        num_frames: of the video.
        classes: (name, probability), the likeliest first.
        gmacs: spent on the clip.
        dense_gmacs: with everything computed.
        shares: of the actions; all keep for a model without fusion.
        sites: the same at each site.
    """

    num_frames: int
    classes: list[tuple[str, float]]
    gmacs: float
    dense_gmacs: float
    shares: dict[str, float]
    sites: dict[str, dict[str, float]]

    def __str__(self) -> str:
        lines = [f"{p:7.1%}  {name}" for name, p in self.classes[:5]]
        lines += [f"cost     {summary.costs(self.gmacs, self.dense_gmacs)}"]
        lines += [f"actions  {summary.shares(self.shares)}"]
        lines += [f"  {name:<12} {summary.shares(s)}" for name, s in self.sites.items()]
        return "\n".join(lines)


def predict(path: Path, trained: Trained) -> Prediction:
    """Classifies a video file as evaluation does: T frames, centre crop, likeliest actions.

    Raises:
        UserError: for a video that can't be read.
    """
    data, found = trained.config.data, []

    def choose(num_frames: int) -> np.ndarray:
        found.append(num_frames)
        return sampling.validation_indices(num_frames, data.num_frames)

    try:
        frames = decode.read_frames(Clip(path, 0), choose)
    except decode.UnreadableClip as error:
        raise UserError(f"video {error}") from error
    # moving_shapes fill the image: a crop of it would be another scale than the one trained on.
    resize = data.image_size if data.name == "moving_shapes" else data.resize
    clip = transforms.center_crop(frames, resize, data.image_size)
    config, graph = trained.config, trained.parts.graph

    @jax.jit
    def run(params, stats, clip):
        model = put_together(graph, params, stats)
        out = model(normalize(clip[None], data))
        cost = cost_of(model, out, config)
        batch = {"label": jnp.zeros(1, jnp.int32), "weight": jnp.ones(1)}
        return jax.nn.softmax(out.logits[0]), cost, measure(model, out, cost, batch)

    probabilities, cost, metrics = jax.device_get(run(trained.parts.params, trained.parts.stats, clip))
    figures = metrics.compute()
    order = np.argsort(-probabilities, kind="stable")
    return Prediction(
        num_frames=found[-1],
        classes=[(trained.class_names[i], float(probabilities[i])) for i in order],
        gmacs=figures["gmacs_per_clip"],
        dense_gmacs=cost.dense / 1e9,
        shares=figures["shares"],
        sites=figures["sites"],
    )
