"""What policies save: `bench`."""

import argparse
import os
from pathlib import Path

from adafuse_jax.cli import values
from adafuse_jax.errors import UserError


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
    from adafuse_jax.bench import subject
    from adafuse_jax.report import bench as report

    shares = None if args.policy is None else _shares(args.policy)
    if args.checkpoint is None:
        model, data = subject.of_zoo(args.model, args.image_size, args.num_frames)
    else:
        model, data = subject.of_checkpoint(args.checkpoint, args.which, args.image_size, args.num_frames)
    drawn = None if shares is None else bench.Drawn(model, shares, args.batch, data.num_frames)
    executions = compact.EXECUTIONS if args.execution == "both" else (args.execution,)
    runs = bench.prepare(model, subject.clips(data, args.batch, args.video), drawn, executions)
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
