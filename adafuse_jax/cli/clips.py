"""Clips before training: `check-data`."""

import argparse
import json
import os
from pathlib import Path

from adafuse_jax.cli import values
from adafuse_jax.config import Data
from adafuse_jax.errors import UserError


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    check = commands.add_parser(
        "check-data",
        help="read all clips of a list or folder, report the bad ones and write a list of the good ones",
        epilog="exit status: 0 all clips are good, 1 some are not, 2 wrong usage",
    )
    check.add_argument("source", type=Path, help="a list, a folder of class folders, or a folder of videos")
    check.add_argument("--num_classes", type=values.positive, default=0, help="default: as found")
    check.add_argument("--root", default="", help="where a list's relative paths start; default: its folder")
    check.add_argument(
        "--frame_template", default=Data.frame_template, help="names of a JPEG folder's frames"
    )
    check.add_argument("--min_frames", type=values.positive, default=3, help="fewer are too short; default 3")
    check.add_argument(
        "--out",
        type=Path,
        help="the cleaned list; default: beside the source, NAME.clean.txt; of class folders also "
        "NAME.clean.classes.txt, their names in label order; none of a folder of videos without labels",
    )
    check.add_argument("--json", type=Path, help="the report for machines; default: none")
    check.add_argument("--workers", type=values.positive, default=0, help="threads; default: one a core")
    check.set_defaults(run=_check_data)


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
