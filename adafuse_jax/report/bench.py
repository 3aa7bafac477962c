"""What `adafuse bench` prints: MACs by stage, then theory beside measured times, of clips and of streams."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Float

from adafuse_jax import flops
from adafuse_jax.compact_gpu import Choice
from adafuse_jax.models.arnet import ARNet
from adafuse_jax.models.recognizer import Recognizer
from adafuse_jax.report import saved, summary


def text(
    model: Recognizer | ARNet,
    policies: Mapping[str, Float[Array, "b t c actions"]],
    seconds: Mapping[tuple[str, str], Float[np.ndarray, " turns"]],
    batch: int,
    image_size: int,
    num_frames: int,
    choices: Mapping[str, Choice] | None = None,
) -> str:
    """The tables.

    Args:
        model: that was timed.
        policies: what it decided.
        seconds: {("clip" or "stream", execution): of all clips, in each turn}.
        batch: number of clips.
        image_size: pixels.
        num_frames: T.
        choices: of a GPU, how the block of each site runs where clips run compactly.
    """
    cost = flops.count(model, policies, image_size=image_size, num_frames=num_frames)
    spent, dense, lines = float(np.mean(cost.actual)) / 1e9, cost.dense / 1e9, []
    if policies:
        counts = sum(np.asarray(policy).sum((0, 1, 2)) for policy in policies.values())
        shares = dict(zip(model.actions, counts / counts.sum(), strict=True))
        stages = saved.by_stage(model, policies, image_size=image_size, num_frames=num_frames)
        lines += [f"actions  {summary.shares(shares)}", "", saved.table(stages)]
    for kind, title, frames in (("clip", "on clips", 1), ("stream", "frame by frame", num_frames)):
        compact, dense_time = (seconds.get((kind, e)) for e in ("compact", "dense"))
        if compact is None and dense_time is None:
            continue
        lines += ["", title]
        lines += saved.side_by_side(
            spent / frames,
            dense / frames,
            None if compact is None else compact / (batch * frames),
            None if dense_time is None else dense_time / (batch * frames),
            "per clip" if kind == "clip" else "a frame",
        )
    if choices:
        lines += ["", "where policies decide, as measured: ms of a block on all clips", *table(choices)]
    return "\n".join(lines)


def table(choices: Mapping[str, Choice]) -> list[str]:
    """A line for each site: what runs, and the milliseconds of everything computed and of each tiling."""
    ways = list(next(iter(choices.values())).seconds)
    lines = [f"{'':<12} {'runs':<10}" + "".join(f"{way:>11}" for way in ways)]
    for site, choice in choices.items():
        times = "".join(f"{1e3 * choice.seconds[way]:>11.3f}" for way in ways)
        lines.append(f"{site:<12} {'compact' if choice.compact else 'dense':<10}{times}")
    return lines
