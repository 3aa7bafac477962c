"""The command `adafuse`: what a user does with a trained model."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

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
    args = parser.parse_args(argv)
    return guarded(lambda: args.run(args))


def guarded(run: Callable[[], None]) -> int:
    """The exit status of `run`, with a user's mistake told in one line; 130 after Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("adafuse_jax").setLevel(logging.INFO)
    try:
        run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _predict(args: argparse.Namespace) -> None:
    from adafuse_jax import predict
    from adafuse_jax.train import run

    if not args.video.is_file():
        raise UserError(f"video {args.video}: expected a file, found none")
    print(predict.predict(args.video, run.load(args.checkpoint, args.which)))


if __name__ == "__main__":
    sys.exit(main())
