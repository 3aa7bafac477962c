"""The command `adafuse`: what a user does with a trained model, and with clips before training."""

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from adafuse_jax.config import Data
from adafuse_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; a user's mistake is one line on stderr and status 2."""
    parser = argparse.ArgumentParser(prog="adafuse", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    predict = commands.add_parser("predict", help="classify a video with a trained model")
    predict.add_argument("video", type=Path, help="a video file of any codec")
    predict.add_argument("--checkpoint", type=Path, required=True, help="a run's workdir")
    predict.add_argument("--which", choices=("best", "latest"), default="best", help="which checkpoint")
    predict.set_defaults(run=_predict)
    _add_stream(commands)
    _add_check_data(commands)
    _add_convert(commands)
    _add_export(commands)
    table = commands.add_parser(
        "table", help="parameters and cost of the paper's systems, beside the paper's"
    )
    table.add_argument("--format", choices=("text", "markdown", "csv"), default="text")
    table.add_argument(
        "--data", nargs="+", choices=("sthv1", "sthv2", "jester", "minik"), help="default: all"
    )
    table.set_defaults(run=_table)
    args = parser.parse_args(argv)
    return guarded(lambda: args.run(args))


def guarded(run: Callable[[], int | None], stopped: str = "stopped") -> int:
    """The exit status of `run` (None for 0).

    A user's mistake is told in one line, status 2; Ctrl-C by the line `stopped`, status 130.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("adafuse_jax").setLevel(logging.INFO)
    # Orbax logs each error that it also raises, with the traceback of every thread that met it.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        return run() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130


def _predict(args: argparse.Namespace) -> None:
    from adafuse_jax import predict
    from adafuse_jax.train import run

    if not args.video.is_file():
        raise UserError(f"video {args.video}: expected a file, found none")
    print(predict.predict(args.video, run.load(args.checkpoint, args.which)))


def _add_stream(commands: argparse._SubParsersAction) -> None:
    stream = commands.add_parser(
        "stream",
        help="watch a video, a camera or a network stream with a trained model",
        description="Shows after each frame the classes, the time and the MACs it took and what the channels "
        "did. Ctrl-C ends it with a summary.",
    )
    stream.add_argument("source", help="a file, the number of a camera, or an address such as rtsp://...")
    stream.add_argument("--checkpoint", type=Path, required=True, help="a run's workdir")
    stream.add_argument("--which", choices=("best", "latest"), default="best", help="which checkpoint")
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
    watcher = Watcher(trained, frames)
    screen, summary, seen = shown.Screen(sys.stdout), shown.Summary(), None
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


def _add_convert(commands: argparse._SubParsersAction) -> None:
    convert = commands.add_parser(
        "convert",
        help="bring weights of others, or of a run, into one safetensors file with a card",
        description="Reads files of torch.save (without running them), safetensors and npz under the names "
        "of published AdaFuse and TSM, torchvision, EfficientNet-PyTorch, Cadene's BN-Inception; and runs.",
    )
    convert.add_argument("source", type=Path)
    convert.add_argument("--model", help="name in the zoo; needed for weights without a card")
    convert.add_argument("--out", type=Path, help="folder for weights.safetensors; needed without --dry_run")
    convert.add_argument("--num_classes", type=_positive, help="default: as in the source")
    convert.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the model, as stride_in_1x1=true",
    )
    convert.add_argument(
        "--allow_missing",
        "--allow-missing",
        default="",
        help="of policy,head: what may be missing or another task's",
    )
    convert.add_argument("--class_names", type=Path, help="text file, a name a line, in label order")
    convert.add_argument("--licence", default="", help="of the weights")
    convert.add_argument("--origin", default="", help="where they come from; default: the file's name")
    convert.add_argument("--dry_run", "--dry-run", action="store_true", help="only print what goes where")
    convert.set_defaults(run=_convert)


def _convert(args: argparse.Namespace) -> None:
    from adafuse_jax import convert, weights
    from adafuse_jax.input import manifest
    from adafuse_jax.weights import files

    if args.out is None and not args.dry_run:
        raise UserError("--out: expected a folder, found none")
    names = []
    if args.class_names:
        names = [line for _, line in manifest.read_lines(args.class_names, "class names")]
    found = convert.convert(
        args.source,
        args.model,
        num_classes=args.num_classes,
        options=dict(map(_option, args.option)),
        allow_missing=[group for group in args.allow_missing.split(",") if group],
        class_names=names,
        licence=args.licence,
        origin=args.origin,
    )
    if args.dry_run:
        print(found.mapping())
        return
    path = args.out / files.FILE
    weights.save(found.model, path, found.card)
    print(f"written  {path}: {found.card.model}, {found.card.num_classes} classes")


def _add_export(commands: argparse._SubParsersAction) -> None:
    export = commands.add_parser(
        "export", help="write a trained model as a file that runs without this package"
    )
    export.add_argument("checkpoint", type=Path, help="a run's workdir, or what convert wrote")
    export.add_argument("--out", type=Path, required=True, help="file to write")
    export.add_argument(
        "--format",
        choices=("stablehlo", "onnx", "safetensors"),
        default="stablehlo",
        help="StableHLO of jax.export for CPU, CUDA and TPU; ONNX; or the weights by their published names",
    )
    export.add_argument("--stream", action="store_true", help="stablehlo: the step of a stream of frames")
    export.add_argument("--which", choices=("best", "latest"), default="best", help="which checkpoint")
    export.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> None:
    from adafuse_jax import convert, export, weights
    from adafuse_jax.train import run

    if args.stream and args.format != "stablehlo":
        raise UserError(f"--stream: expected --format=stablehlo with it, found {args.format}")
    trained = run.load(args.checkpoint, args.which)
    if args.format == "safetensors":
        weights.save(convert.model_of(trained), args.out, convert.card_of(trained))
    elif args.format == "onnx":
        export.write(export.onnx(trained), args.out)
    else:
        export.write(export.stablehlo(trained, args.stream), args.out)
    print(f"written  {args.out}")


def _option(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--option: expected NAME=VALUE, found {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _add_check_data(commands: argparse._SubParsersAction) -> None:
    check = commands.add_parser(
        "check-data",
        help="read all clips of a list or folder, report the bad ones and write a list of the good ones",
        epilog="exit status: 0 all clips are good, 1 some are not, 2 wrong usage",
    )
    check.add_argument("source", type=Path, help="a list, a folder of class folders, or a folder of videos")
    check.add_argument("--num_classes", type=_positive, default=0, help="default: as found")
    check.add_argument("--root", default="", help="where a list's relative paths start; default: its folder")
    check.add_argument(
        "--frame_template", default=Data.frame_template, help="names of a JPEG folder's frames"
    )
    check.add_argument("--min_frames", type=_positive, default=3, help="fewer are too short; default 3")
    check.add_argument(
        "--out",
        type=Path,
        help="the cleaned list; default: beside the source, NAME.clean.txt; of class folders also "
        "NAME.clean.classes.txt, their names in label order; none of a folder of videos without labels",
    )
    check.add_argument("--json", type=Path, help="the report for machines; default: none")
    check.add_argument("--workers", type=_positive, default=0, help="threads; default: one a core")
    check.set_defaults(run=_check_data)


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, found {text}")
    return int(text)


def _check_data(args: argparse.Namespace) -> int:
    from adafuse_jax.input import check

    source = args.source
    name = source.absolute().name if source.is_dir() else source.stem
    out = args.out or source.absolute().with_name(f"{name}.clean.txt")
    for path in filter(None, (out, args.json)):
        if path.resolve() == source.resolve():
            raise UserError(f"{path}: expected another file than the source, which is never overwritten")
        if not os.access(path.absolute().parent, os.W_OK):  # said now, not when all has been read
            raise UserError(f"{path}: expected it in a folder that can be written to, found none")
    if source.is_dir():
        report = check.check_folder(source, args.num_classes, args.min_frames, args.workers)
    else:
        report = check.check_list(
            source, args.num_classes, args.root, args.min_frames, args.frame_template, args.workers
        )
    print(report)
    for path in check.write(report, out, args.root):
        print(f"written  {path}")
    if args.json:
        args.json.write_text(json.dumps(report.to_dict(), indent=1) + "\n")
        print(f"written  {args.json}")
    return 1 if report.bad else 0


if __name__ == "__main__":
    sys.exit(main())
