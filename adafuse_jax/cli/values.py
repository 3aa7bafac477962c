"""What several subcommands take."""

import argparse
from pathlib import Path


def positive(text: str) -> int:
    """An integer of at least 1."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, found {text}")
    return int(text)


def add_which(command: argparse.ArgumentParser) -> None:
    """Adds which of a run's checkpoints is meant."""
    command.add_argument("--which", choices=("best", "latest"), default="best", help="which checkpoint")


def add_checkpoint(command: argparse.ArgumentParser) -> None:
    """Adds the checkpoint to use, as a flag."""
    command.add_argument(
        "--checkpoint", type=Path, required=True, help="a run's workdir, or what convert wrote"
    )
    add_which(command)


def add_execution(command: argparse.ArgumentParser) -> None:
    """Adds how a model is to be run."""
    command.add_argument(
        "--execution",
        choices=("dense", "compact"),
        default="dense",
        help="compact: leave out what the policies leave out, on the CPU, and on a GPU of clips alone; timed "
        "beside dense",
    )
