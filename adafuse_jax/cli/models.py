"""What a trained model says: `predict`, `stream`; and the paper's systems: `table`."""

import argparse
import contextlib
import sys
from pathlib import Path

from adafuse_jax.cli import values
from adafuse_jax.errors import UserError


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommands."""
    predict = commands.add_parser("predict", help="classify a video with a trained model")
    predict.add_argument("video", type=Path, help="a video file of any codec")
    values.add_checkpoint(predict)
    values.add_execution(predict)
    predict.set_defaults(run=_predict)
    _add_stream(commands)
    table = commands.add_parser(
        "table", help="parameters and cost of the paper's systems, beside the paper's"
    )
    table.add_argument("--format", choices=("text", "markdown", "csv"), default="text")
    table.add_argument(
        "--data", nargs="+", choices=("sthv1", "sthv2", "jester", "minik"), help="default: all"
    )
    table.set_defaults(run=_table)


def _predict(args: argparse.Namespace) -> None:
    from adafuse_jax import predict
    from adafuse_jax.train import run

    if not args.video.is_file():
        raise UserError(f"video {args.video}: expected a file, found none")
    print(predict.predict(args.video, run.load(args.checkpoint, args.which), args.execution))


def _add_stream(commands: argparse._SubParsersAction) -> None:
    stream = commands.add_parser(
        "stream",
        help="watch a video, a camera or a network stream with a trained model",
        description="Shows after each frame the classes, the time and the MACs it took and what the channels "
        "did. Ctrl-C ends it with a summary.",
    )
    stream.add_argument("source", help="a file, the number of a camera, or an address such as rtsp://...")
    values.add_checkpoint(stream)
    values.add_execution(stream)
    stream.add_argument("--fps", type=float, default=4.0, help="frames to look at in a second; default 4")
    stream.add_argument(
        "--clip_frames",
        type=int,
        help="a new clip begins after so many of them, 0: never; default: as many as in training",
    )
    stream.add_argument("--out", type=Path, help="a video with captions to write, as seen.mp4")
    stream.set_defaults(run=_stream)


def _stream(args: argparse.Namespace) -> None:
    from adafuse_jax.input import live as sources
    from adafuse_jax.live import Watcher
    from adafuse_jax.report import live as shown
    from adafuse_jax.train import run

    if not 0 < args.fps < float("inf"):
        raise UserError(f"--fps: expected more than 0, found {args.fps}")
    if args.clip_frames is not None and args.clip_frames < 0:
        raise UserError(f"--clip_frames: expected 0 or more, found {args.clip_frames}")
    every = args.out is not None and not sources.is_live(args.source)
    moments = sources.frames(args.source, args.fps, every)
    trained = run.load(args.checkpoint, args.which)
    frames = trained.config.data.num_frames if args.clip_frames is None else args.clip_frames
    watcher = Watcher(trained, frames, args.execution)
    screen, summary, seen = shown.Screen(sys.stdout), shown.Summary(watcher.dense_seconds), None
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(KeyboardInterrupt))
            video = None
            if args.out is not None:
                rate = sources.rate(args.source) if every else args.fps
                video = stack.enter_context(shown.Captioned(args.out, rate))
            for moment in moments:
                if moment.due:
                    seen = watcher(moment.image)
                    summary.add(seen)
                    screen.show(moment.time, seen)
                if video is not None:
                    video.write(moment.image, seen)
    finally:  # of a source that breaks off, too
        if seen is not None:
            print(summary)
    if args.out is not None:
        print(f"written  {args.out}")


def _table(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from adafuse_jax.report import paper, table

    print(
        table.render(
            args.format, args.data or tuple(paper.DATA_SETS), lambda r: tqdm(r, "count", leave=False)
        )
    )
