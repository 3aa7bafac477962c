"""What policies save: `bench`."""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adafuse_jax.cli import values
from adafuse_jax.errors import UserError

if TYPE_CHECKING:
    from adafuse_jax.config import Data


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    bench = commands.add_parser(
        "bench",
        help="what a model's policies save on this machine: MACs in theory beside the time measured",
        description="Times a model on clips, and frame by frame where it can stream, with everything "
        "computed (dense) and run compactly. All take turns in one process; printed are medians of the "
        "times and of the ratios of one turn, the latter with quartiles.",
    )
    which = bench.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="name in the zoo; its weights are random")
    which.add_argument("--checkpoint", type=Path, help="a run's workdir, or what convert wrote")
    values.add_which(bench)
    bench.add_argument(
        "--policy",
        metavar="SKIP,REUSE,KEEP",
        help="shares by which every channel of every frame draws its action, as .35,.25,.4; policy networks "
        "still run. Default: the model decides",
    )
    bench.add_argument("--video", type=Path, help="a video file to look at; default: random frames")
    bench.add_argument("--image_size", type=values.positive, help="pixels; default: the checkpoint's, or 224")
    bench.add_argument(
        "--num_frames", type=values.positive, help="of a clip; default: the checkpoint's, or 8"
    )
    bench.add_argument("--batch", type=values.positive, default=1, help="clips, and streams; default 1")
    bench.add_argument("--turns", type=values.positive, default=15, help="default 15")
    bench.add_argument("--execution", choices=("both", "dense", "compact"), default="both")
    bench.set_defaults(run=_bench)


def _bench(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from adafuse_jax import bench, compact
    from adafuse_jax.report import bench as report

    shares = None if args.policy is None else _shares(args.policy)
    if args.video is not None and not args.video.is_file():
        raise UserError(f"video {args.video}: expected a file, found none")
    model, data = _model(args)
    drawn = None if shares is None else bench.Drawn(model, shares, args.batch, data.num_frames)
    executions = compact.EXECUTIONS if args.execution == "both" else (args.execution,)
    runs = bench.prepare(model, _clip(args, data), drawn, executions)
    named = runs.named()
    if not named:
        raise UserError(runs.missing[0])
    for line in runs.missing:
        print(f"not timed: {line}")
    before = os.getloadavg()[0]
    with tqdm(total=len(named) * (args.turns + 1), desc="bench", leave=False, disable=None) as bar:
        seconds = bench.take_turns(named, args.turns, bar.update)
    policies = next(iter(runs.clip.values()))().policies
    seen = "random" if args.video is None else f"of {args.video}"
    decided = "policies of its own" if shares is None else f"policies drawn by {args.policy}"
    size = f"{data.image_size}x{data.image_size}"
    print(f"{model.name}, {args.batch} x {data.num_frames} frames of {size} {seen}; {decided}")
    print(
        f"{args.turns} turns on {_cores()} cores, load average {before:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after"
    )
    print(report.text(model, policies, seconds, args.batch, data.image_size, data.num_frames, runs.choices))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(share) for share in text.split(","))
    except ValueError as error:
        raise UserError(f"--policy: expected SKIP,REUSE,KEEP, as .35,.25,.4, found {text!r}") from error


def _model(args: argparse.Namespace) -> tuple[Any, "Data"]:
    """The model and how it looks at videos."""
    import jax
    from flax import nnx

    from adafuse_jax import convert, create_model
    from adafuse_jax.config import Data
    from adafuse_jax.models.zoo import options_of
    from adafuse_jax.predict import as_filmed
    from adafuse_jax.train import run

    trained = None if args.checkpoint is None else run.load(args.checkpoint, args.which)
    data = Data() if trained is None else trained.config.data
    size, frames = args.image_size or data.image_size, args.num_frames or data.num_frames
    data = dataclasses.replace(
        data,
        image_size=size,
        resize=round(size * data.resize / data.image_size),
        num_frames=frames,
        test_clips=1,
        test_crops=1,
    )
    if trained is not None:
        model = convert.model_of(trained)
        nnx.update(
            model, jax.device_put(nnx.state(model))
        )  # or each call would bring the weights from the host
        return model, as_filmed(data)
    options = {"num_frames": frames} if "num_frames" in options_of(args.model) else {}
    return create_model(args.model, **options), data


def _clip(args: argparse.Namespace, data: "Data"):
    import jax.numpy as jnp
    import numpy as np

    from adafuse_jax.input import decode, views
    from adafuse_jax.input.manifest import Clip
    from adafuse_jax.train.step import normalize

    if args.video is None:
        shape = (args.batch, data.num_frames, data.image_size, data.image_size, 3)
        return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
    try:
        clip = views.evaluation_views(data, lambda choose: decode.read_frames(Clip(args.video, 0), choose))
    except decode.UnreadableClip as error:
        raise UserError(f"video {error}") from error
    return normalize(jnp.repeat(jnp.asarray(clip), args.batch, 0), data)
