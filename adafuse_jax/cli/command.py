"""The command `adafuse`: what a user does with a trained model, and with clips before training."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from adafuse_jax import memory
from adafuse_jax.cli import bench, clips, models, weights
from adafuse_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; a user's mistake is one line on stderr and status 2."""
    parser = argparse.ArgumentParser(prog="adafuse", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for room in (models, bench, clips, weights):
        room.add(commands)
    args = parser.parse_args(argv)
    memory.keep_freed()
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
