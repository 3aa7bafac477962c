"""What a trained model says about a video: classes with probabilities, MACs and actions."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from adafuse_jax.compact import check_execution, compacted
from adafuse_jax.config import Config, Data
from adafuse_jax.errors import UserError
from adafuse_jax.input import decode, views
from adafuse_jax.input.manifest import Clip
from adafuse_jax.models.recognizer import Recognizer
from adafuse_jax.report import saved, summary
from adafuse_jax.train.run import Trained
from adafuse_jax.train.state import put_together
from adafuse_jax.train.step import cost_of, measure, normalize, over_views


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A clip's classes and cost.

    Attributes:
        num_frames: of the video.
        classes: (name, probability), the likeliest first.
        gmacs: spent on all views of the clip.
        dense_gmacs: with everything computed.
        shares: of the actions; all keep for a model without fusion.
        sites: the same at each site.
        seconds: that the model took, once compiled: {"dense": all computed, "compact": where asked for}.
    """

    num_frames: int
    classes: list[tuple[str, float]]
    gmacs: float
    dense_gmacs: float
    shares: dict[str, float]
    sites: dict[str, dict[str, float]]
    seconds: dict[str, float]

    def __str__(self) -> str:
        lines = [f"{p:7.1%}  {name}" for name, p in self.classes[:5]]
        times = (self.seconds.get(execution) for execution in ("compact", "dense"))
        lines += saved.side_by_side(self.gmacs, self.dense_gmacs, *times)
        lines += [f"actions  {summary.shares(self.shares)}"]
        lines += [f"  {name:<12} {summary.shares(s)}" for name, s in self.sites.items()]
        return "\n".join(lines)


def as_filmed(data: Data) -> Data:
    """How a video is to be looked at by a model trained on `data`.

    The drawn shapes of moving_shapes fill the image: a crop would be another scale than the one trained on.
    """
    return dataclasses.replace(data, resize=data.image_size) if data.name == "moving_shapes" else data


def predict(path: Path, trained: Trained, execution: str = "dense") -> Prediction:
    """Classifies a video file as evaluation does: the same views of it, the likeliest actions.

    Args:
        path: of the video.
        trained: from `train.run.load`.
        execution: "dense", or "compact": timed beside dense (see `compact.Compact`).

    Raises:
        UserError: for a video that can't be read, another execution, or a model that can't be run compactly.
    """
    check_execution(execution)
    parts = trained.parts
    models = {"dense": put_together(parts.graph, jax.device_get(parts.params), jax.device_get(parts.stats))}
    config, found = trained.config, []
    data = as_filmed(config.data)

    def read_frames(choose: Callable[[int], Sequence[int]]) -> list[decode.Image]:
        return decode.read_frames(Clip(path, 0), lambda n: found.append(n) or choose(n))

    try:
        clip = views.evaluation_views(data, read_frames)
    except decode.UnreadableClip as error:
        raise UserError(f"video {error}") from error

    if execution == "compact" and (model := compacted(models["dense"], normalize(clip, data))) is not None:
        models["compact"] = model
    seconds = {}
    for name, model in models.items():  # the last one's results count
        run = _classifier(model, trained.config, data)
        jax.block_until_ready(run(clip))  # compiles
        start = time.perf_counter()
        results = jax.block_until_ready(run(clip))
        seconds[name] = time.perf_counter() - start
    probabilities, cost, metrics = jax.device_get(results)
    figures = metrics.compute()
    order = np.argsort(-probabilities, kind="stable")
    return Prediction(
        num_frames=found[-1],
        classes=[(trained.class_names[i], float(probabilities[i])) for i in order],
        gmacs=figures["gmacs_per_clip"],
        dense_gmacs=cost.dense / 1e9,
        shares=figures["shares"],
        sites=figures["sites"],
        seconds=seconds,
    )


def _classifier(model: Recognizer, config: Config, data: Data):
    """Classes, cost and metrics of the views of one clip."""
    graph, weights = nnx.split(model)
    weights = jax.device_put(weights)  # once, not at each call

    @jax.jit
    def run(weights, clip):
        model = nnx.merge(graph, weights)
        out = model(normalize(clip, data))
        out, cost = over_views(out, cost_of(model, out, config), 1)
        batch = {"label": jnp.zeros(1, jnp.int32), "weight": jnp.ones(1)}
        return jax.nn.softmax(out.logits[0]), cost, measure(model, out, cost, batch)

    return functools.partial(run, weights)
