"""Prepares a data set for fast reading: python -m data.prepare NAME --manual_dir DIR --data_dir DIR.

Frames become JPEGs in ArrayRecord shards, in a folder that TFDS reads and that
`--config.data.name=prepared --config.data.prepared_dir=...` trains from. Interrupted in any way, the same
command goes on: finished shards are kept. See data/README.md for what each data set's folder must hold.
"""

import argparse
import dataclasses
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import tqdm

from adafuse_jax.errors import UserError
from adafuse_jax.input.prepared import METADATA
from data import runners, shards
from data.builder import VideoBuilder
from data.jester import Jester
from data.listing import Listing
from data.mini_kinetics import MiniKinetics
from data.moving_shapes import MovingShapes
from data.shards import Report
from data.something_something_v1 import SomethingSomethingV1
from data.something_something_v2 import SomethingSomethingV2
from data.video_list import VideoList

BUILDERS = {
    builder.name: builder
    for builder in (SomethingSomethingV1, SomethingSomethingV2, Jester, MiniKinetics, MovingShapes, VideoList)
}
SETTINGS = "prepare.json"  # what the shards were made with
REJECTED = "rejected.txt"
_OWN = ("name", "manual_dir", "data_dir", "splits", "workers", "shard_clips", "max_rejected", "beam")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared data set: its folder, and a report of each shard, by split and number."""

    directory: Path
    class_names: list[str]
    reports: list[Report]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; a user's mistake is one line on stderr and status 2."""
    args = _parser().parse_args(argv)
    start = time.monotonic()
    try:
        prepared = prepare(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the shards that are missing", file=sys.stderr)
        return 130
    print(summary(prepared, time.monotonic() - start))
    return 0


def prepare(args: argparse.Namespace) -> Prepared:
    """Prepares the data set that the flags name, or what is missing of it.

    Raises:
        UserError: for files that aren't as their owner ships them, settings other than those of the
            folder's finished shards, and more clips rejected than allowed.
    """
    _check(args)
    options = {key: value for key, value in vars(args).items() if key not in _OWN}
    builder = BUILDERS[args.name](data_dir=args.data_dir, **options)
    listing = builder.listing(getattr(args, "manual_dir", None) or Path())
    if builder.CLASSES not in (None, len(listing.class_names)):
        found = f"{len(listing.class_names)} in {args.manual_dir}"
        print(f"note: {args.name} has {builder.CLASSES} classes as published, found {found}", file=sys.stderr)
    splits = _splits(args, listing)
    directory = Path(builder.data_dir)
    _claim(directory, builder, listing, splits, args.shard_clips)
    total = sum(len(listing.splits[split]) for split in splits)
    tasks = shards.plan(builder, listing, splits, args.shard_clips, int(args.max_rejected * total))
    found = [shards.finished(task) for task in tasks]
    if None in found or not (directory / METADATA).is_file():
        _write_missing(directory, tasks, found, args, total)
        found = [shards.finished(task) for task in tasks]
        if None in found:
            raise UserError(
                f"{found.count(None)} of {len(found)} shards aren't finished: see the errors above"
            )
        sizes = {split: [(r.clips, r.bytes) for r in found if r.split == split] for split in splits}
        for split in splits:
            if not any(clips for clips, _ in sizes[split]):
                raise UserError(f"split {split}: expected clips, found none that can be read")
        builder.write_metadata(list(listing.class_names), sizes)
    return Prepared(directory, list(listing.class_names), found)


def summary(prepared: Prepared, seconds: float) -> str:
    """What was prepared, in a few lines.

    Args:
        prepared: the data set.
        seconds: that it took.
    """
    lines = []
    for split in dict.fromkeys(report.split for report in prepared.reports):
        reports = [report for report in prepared.reports if report.split == split]
        clips, size = (sum(getattr(r, name) for r in reports) for name in ("clips", "bytes"))
        hours = sum(r.seconds for r in reports) / 3600
        length = f"{hours:.2f} h" if hours else "? h"
        rejected = sum(len(r.rejected) for r in reports)
        lines.append(
            f"{split:<11} {clips:>7} clips  {length:>9}  {size / 1e6:>9.1f} MB  {len(reports):>4} shards  "
            f"{rejected} rejected"
        )
    if any(report.rejected for report in prepared.reports):
        lines.append(f"rejected    {prepared.directory / REJECTED}")
    lines.append(f"took        {seconds:.0f} s")
    lines.append(
        f"train with  --config.data.name=prepared --config.data.prepared_dir={prepared.directory} "
        f"--config.data.num_classes={len(prepared.class_names)}"
    )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__.split("\n")[0])
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, builder in BUILDERS.items():
        one = names.add_parser(name, help=builder.first_words(), description=builder.first_words())
        builder.add_arguments(one)
        one.add_argument("--data_dir", type=Path, required=True, help="where the prepared data goes")
        one.add_argument("--splits", default="train,validation", help="comma-separated; also: test")
        one.add_argument("--workers", type=int, default=_cores(), help="processes; default: all cores")
        one.add_argument("--shard_clips", type=int, default=0, help="clips a shard; 0: 256, or fewer")
        one.add_argument("--max_rejected", type=float, default=0.01, help="share of clips; more is an error")
        one.add_argument("--beam", help='run on Apache Beam with these arguments: --beam="--runner=..."')
    return parser


def _cores() -> int:
    """Cores this process may use, which on a shared machine may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _check(args: argparse.Namespace) -> None:
    ranges = {
        "short_side": (16, None),
        "quality": (1, 100),
        "max_frames": (0, None),
        "workers": (1, None),
        "shard_clips": (0, None),
        "max_rejected": (0, 1),
        "num_frames": (2, None),
        "image_size": (16, None),
        "train_clips": (1, None),
        "val_clips": (1, None),
    }
    for name, (least, most) in ranges.items():
        value = getattr(args, name, least)
        if value < least or (most is not None and value > most):
            wanted = f"at least {least}" if most is None else f"{least}..{most}"
            raise UserError(f"--{name}: expected {wanted}, found {value}")
    manual_dir = getattr(args, "manual_dir", None)
    if manual_dir and not manual_dir.is_dir():
        raise UserError(f"--manual_dir: expected a folder, found none at {manual_dir}")


def _splits(args: argparse.Namespace, listing: Listing) -> list[str]:
    wanted = args.splits.split(",")
    for split in wanted:
        if not listing.splits.get(split):
            known = ", ".join(name for name, items in listing.splits.items() if items)
            raise UserError(f"--splits: expected some of {known}, found {split!r}")
    return wanted


def _claim(
    directory: Path, builder: VideoBuilder, listing: Listing, splits: list[str], shard_clips: int
) -> None:
    """Notes the settings in the folder, or checks that its shards were made with the same ones."""
    path = directory / SETTINGS
    settings = {
        "encoder": dataclasses.asdict(builder.encoder),
        "splits": splits,
        "shard_clips": shard_clips,
        "clips and labels": listing.digest(),
    }
    if not path.exists():
        shards.write_text(path, json.dumps(settings, indent=1) + "\n")
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    flat, theirs = ({**s, **s["encoder"]} for s in (settings, there))
    for name in flat:
        if name != "encoder" and flat[name] != theirs.get(name):
            raise UserError(
                f"{directory} holds shards with {name}={theirs.get(name)!r}, expected {flat[name]!r}: "
                "give another --data_dir, or the same settings to go on"
            )


def _write_missing(
    directory: Path,
    tasks: list[shards.Task],
    found: list[Report | None],
    args: argparse.Namespace,
    total: int,
) -> None:
    for left in directory.glob(".*.array_record-*"):  # of a run that was killed
        left.unlink()
    missing = [task for task, report in zip(tasks, found, strict=True) if not report]
    reports = [report for report in found if report]
    done = total - sum(len(task.items) for task in missing)
    if args.beam is not None:
        reports += runners.run_beam(missing, shlex.split(args.beam))
        _reject(directory, reports, args.max_rejected, total)
    else:
        with tqdm.tqdm(
            total=total, initial=done, unit="clip", desc=args.name, smoothing=0, mininterval=1
        ) as bar:
            for report in runners.run(missing, args.workers, bar.update):
                reports.append(report)
                _reject(directory, reports, args.max_rejected, total)


def _reject(directory: Path, reports: list[Report], max_share: float, total: int) -> None:
    """Lists the rejected clips; too many are an error."""
    lines = [f"{r.split}\t{name}\t{reason}\n" for r in reports for name, reason in r.rejected]
    if not lines:
        return
    shards.write_text(directory / REJECTED, "".join(sorted(lines)))
    if len(lines) > max_share * total:
        raise UserError(
            f"{len(lines)} of {total} clips can't be read, more than the share --max_rejected {max_share}; "
            f"{directory / REJECTED} lists them, the last is {lines[-1].strip()}"
        )


if __name__ == "__main__":
    sys.exit(main())
