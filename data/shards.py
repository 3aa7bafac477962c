"""Shards: which clips go where, and writing one so that it is either whole or not there."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from adafuse_jax.input.decode import UnreadableClip
from data.builder import VideoBuilder, features
from data.encode import Encoded
from data.listing import Item, Listing

PROGRESS = "progress"  # folder of the finished shards' reports
_LARGEST, _SMALLEST, _MANY = 256, 16, 64  # clips a shard; shards that suffice for many cores


@dataclasses.dataclass(frozen=True)
class Task:
    """A shard to be written.

    Attributes:
        split: of the data set.
        path: of the shard.
        report: of the file that says it is finished.
        items: its clips.
        encoder: of the data set.
        num_classes: of the data set.
        most_rejected: clips that may be left out; with more the shard is given up.
    """

    split: str
    path: Path
    report: Path
    items: list[Item]
    encoder: Callable[[Item], Encoded]
    num_classes: int
    most_rejected: int


@dataclasses.dataclass(frozen=True)
class Report:
    """What came of a shard.

    Attributes:
        split: of the data set.
        clips: number written.
        bytes: of the shard's file.
        seconds: of video written, as far as known.
        rejected: (name, reason) of the clips left out.
        finished: False for a shard given up.
    """

    split: str
    clips: int
    bytes: int
    seconds: float
    rejected: list[tuple[str, str]]
    finished: bool = True


def plan(
    builder: VideoBuilder, listing: Listing, splits: list[str], shard_clips: int, most_rejected: int
) -> list[Task]:
    """The shards of a data set, in order; the same whatever carries them out.

    Args:
        builder: of the data set.
        listing: its clips.
        splits: those to prepare.
        shard_clips: clips in a shard, at most; 0: 256, less for a small data set.
        most_rejected: see `Task`.
    """
    tasks = []
    for split in splits:
        items = listing.splits[split]
        size = shard_clips or min(_LARGEST, max(_SMALLEST, -(-len(items) // _MANY)))
        count = -(-len(items) // size)
        for i in range(count):
            path = builder.shard_path(split, i, count)
            tasks.append(
                Task(
                    split,
                    path,
                    path.parent / PROGRESS / f"{path.name}.json",
                    items[len(items) * i // count : len(items) * (i + 1) // count],
                    builder.encoder,
                    len(listing.class_names),
                    most_rejected,
                )
            )
    return tasks


def write(task: Task, tick: Callable[[], None] = lambda: None) -> Report:
    """Writes a shard and then its report, each under another name until it is whole.

    Args:
        task: the shard.
        tick: called after each clip; what it raises stops the shard and leaves nothing behind.
    """
    stored = features(task.num_classes)
    serializer = tfds.core.ExampleSerializer(stored.get_serialized_info())
    fresh = task.path.with_name(f".{task.path.name}.{os.getpid()}")
    clips, seconds, rejected = 0, 0.0, []
    # Groups of one as TFDS and Grain want it; JPEGs don't shrink, and reading would undo it for every clip.
    writer = array_record_module.ArrayRecordWriter(str(fresh), "group_size:1,uncompressed")
    try:
        try:
            for item in task.items:
                try:
                    encoded = task.encoder(item)
                except UnreadableClip as error:
                    rejected.append((item.name, " ".join(str(error).split())))
                    if len(rejected) > task.most_rejected:
                        return Report(task.split, 0, 0, 0.0, rejected, finished=False)
                else:
                    example = serializer.get_tf_example(stored.encode_example(encoded.record))
                    # Otherwise the order of the fields differs from process to process.
                    writer.write(example.SerializeToString(deterministic=True))
                    clips += 1
                    seconds += encoded.seconds
                tick()
        finally:
            writer.close()
        report = Report(task.split, clips, fresh.stat().st_size, seconds, rejected)
        _sync(fresh)
        os.replace(fresh, task.path)
    finally:
        fresh.unlink(missing_ok=True)
    write_text(task.report, json.dumps(dataclasses.asdict(report)))
    return report


def finished(task: Task) -> Report | None:
    """The report of a shard that an earlier run has finished."""
    if not (task.path.exists() and task.report.exists()):
        return None
    values = json.loads(task.report.read_text(encoding="utf-8"))
    return Report(**values | {"rejected": [tuple(entry) for entry in values["rejected"]]})


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    _sync(fresh)
    os.replace(fresh, path)


def _sync(path: Path) -> None:
    """Waits until the file's content is on the disk: a rename may get there before it."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
