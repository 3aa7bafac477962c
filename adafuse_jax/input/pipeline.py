"""Batches of clips by Grain: source -> shuffle -> repeat -> read, sample, crop, flip -> batch.

A batch is {"clip": uint8 (B, T, H, W, 3), "label": int32 (B,), "weight": float32 (B,)}. The weight is 1,
or 0 for a row that isn't a clip: the padding of the last batch of an evaluation, and a clip that couldn't
be read (its pixels are 0). Each record is one clip, so the position in the data is one number, good with
any number of threads; what a record holds depends on (seed, position) alone.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import grain
import numpy as np

from adafuse_jax.config import Config, Data
from adafuse_jax.errors import UserError
from adafuse_jax.input import decode, manifest, prepared, sampling, transforms
from adafuse_jax.input.moving_shapes import CLASSES, MovingShapes

_log = logging.getLogger(__name__)

_SHAPES_SEED = 0  # moving_shapes is one data set, whatever the run's seed: the split tells its clips apart
_PADDING = -1  # index of a row that fills the last batch

Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Clips by index."""

    def __len__(self) -> int: ...

    def read(self, index: int, rng: np.random.Generator | None) -> tuple[np.ndarray, int]:
        """The clip (T, H, W, 3) and its label; with `rng` as for training, without as for evaluation."""


class VideoList:
    """The clips of config.data.train_list or val_list."""

    def __init__(self, data: Data, split: str):
        path = getattr(data, f"{split}_list")
        if not path:
            raise UserError(f"config.data.{split}_list: expected a list of clips, found nothing")
        self._data = data
        self._clips = manifest.read_list(path, data.num_classes, data.root)

    def __len__(self) -> int:
        return len(self._clips)

    def read(self, index: int, rng: np.random.Generator | None) -> tuple[np.ndarray, int]:
        clip, template = self._clips[index], self._data.frame_template
        return _look(self._data, lambda choose: decode.read_frames(clip, choose, template), rng), clip.label


class Prepared:
    """The clips of config.data.prepared_dir."""

    def __init__(self, data: Data, split: str):
        class_names(data)  # checks their number
        self._data = data
        self._clips = prepared.PreparedClips(data.prepared_dir, "train" if split == "train" else "validation")

    def __len__(self) -> int:
        return len(self._clips)

    def read(self, index: int, rng: np.random.Generator | None) -> tuple[np.ndarray, int]:
        clip = self._clips[index]
        return _look(self._data, clip.read_frames, rng), clip.label


def _look(
    data: Data,
    read_frames: Callable[[Callable[[int], Sequence[int]]], list[decode.Image]],
    rng: np.random.Generator | None,
) -> np.ndarray:
    """The clip (T, H, W, 3) that the model sees of frames that `read_frames`, given a choice, reads."""

    def choose(num_frames: int) -> np.ndarray:
        if rng is None:
            return sampling.validation_indices(num_frames, data.num_frames)
        return sampling.training_indices(num_frames, data.num_frames, rng.integers)

    frames = read_frames(choose)
    if rng is None:
        return transforms.center_crop(frames, data.resize, data.image_size)
    pixels = transforms.multi_scale_crop(frames, data.image_size, data.scales, rng.integers)
    if rng.random() < data.flip:
        pixels = transforms.horizontal_flip(pixels)
    return pixels


class Shapes:
    """The clips of moving_shapes, drawn at the size wanted: neither cropped nor flipped."""

    def __init__(self, data: Data, split: str):
        length = data.train_clips if split == "train" else data.val_clips
        self._clips = MovingShapes(
            split, data.num_frames, data.level, length, seed=_SHAPES_SEED, image_size=data.image_size
        )

    def __len__(self) -> int:
        return len(self._clips)

    def read(self, index: int, rng: np.random.Generator | None) -> tuple[np.ndarray, int]:
        record = self._clips[index]
        return record["clip"], record["label"]


class Batches(Iterator[Batch]):
    """Batches in order, from `position` on.

    Attributes:
        num_clips: distinct clips behind this iterator (those of its shard).
        bad: path and reason, by index in the list, of every clip that couldn't be read so far.
    """

    def __init__(self, dataset: grain.IterDataset, num_clips: int, max_bad_share: float):
        self.num_clips = num_clips
        self.bad: dict[int, str] = {}
        self._dataset, self._max_bad_share = dataset, max_bad_share
        self.position = 0

    @property
    def position(self) -> int:
        """Batches handed out since the start of the data; set it to go on from there."""
        return self._position

    @position.setter
    def position(self, batches: int) -> None:
        self._position = batches
        self._iterator = iter(self._dataset)
        grain.experimental.set_next_index(self._iterator, batches)

    def get_state(self) -> dict[str, int]:
        """The position, as JSON can hold it."""
        return {"position": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on from a state that `get_state` gave."""
        self.position = state["position"]

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            UserError: when more than max_bad_share of the clips turned out unreadable.
            StopIteration: after the last batch of an evaluation.
        """
        batch = next(self._iterator)
        self._position += 1
        for index, reason in zip(batch.pop("index"), batch.pop("reason"), strict=True):
            if reason:
                self._report(int(index), str(reason))
        return batch

    def _report(self, index: int, reason: str) -> None:
        if index in self.bad:
            return
        self.bad[index] = reason
        _log.warning("left out a clip that can't be read: %s", reason)
        if len(self.bad) > self._max_bad_share * self.num_clips:
            raise UserError(
                f"{len(self.bad)} of {self.num_clips} clips can't be read, more than the share "
                f"config.data.max_bad_share {self._max_bad_share}; the last is {reason}"
            )


def make_source(config: Config, split: str) -> Source:
    """The clips of a split, "train" or "val".

    Raises:
        UserError: for a list or prepared data that can't be used, or an argument that moving_shapes
            refuses.
    """
    sources = {"moving_shapes": Shapes, "prepared": Prepared, "video_list": VideoList}
    return sources[config.data.name](config.data, split)


def class_names(data: Data) -> list[str]:
    """Names of the classes in label order.

    Raises:
        UserError: where `data.num_classes` isn't their number.
    """
    if data.name == "video_list":
        return manifest.read_class_names(data.class_names, data.num_classes)
    names = list(CLASSES) if data.name == "moving_shapes" else prepared.class_names(data.prepared_dir)
    if data.num_classes != len(names):
        raise UserError(f"config.data.num_classes: {data.name} has {len(names)}, found {data.num_classes}")
    return names


def steps_per_epoch(config: Config, batch_size: int) -> int:
    """Whole batches in one pass over the training clips; what remains opens the next pass.

    Args:
        config: of the run.
        batch_size: clips in a step, over all shards.

    Raises:
        UserError: as `make_train`.
    """
    num_clips = len(make_source(config, "train"))
    _check_batch(batch_size, num_clips)
    return num_clips // batch_size


def make_train(
    config: Config, *, batch_size: int, seed: int, shard_index: int = 0, shard_count: int = 1
) -> Batches:
    """Endless batches of randomly sampled, cropped and flipped clips, shuffled anew for each pass.

    Args:
        config: of the run.
        batch_size: clips in a batch of this shard.
        seed: of the order and the augmentation.
        shard_index: which shard this is, of every shard_count-th clip.
        shard_count: number of shards, each read by its own process.

    Raises:
        UserError: for a batch larger than the training set, a list that can't be used, or a wrong seed.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed: expected 0 or more and less than 2**32, found {seed}")
    source = make_source(config, "train")
    indices = np.arange(len(source))[shard_index::shard_count]
    _check_batch(batch_size, len(indices))

    def record(index: np.ndarray, rng: np.random.Generator) -> Batch:
        return _record(config.data, source, int(index), rng)

    dataset = grain.MapDataset.source(indices).seed(seed).shuffle().repeat().random_map(record)
    return _batches(dataset, config.data, len(indices), batch_size)


def make_eval(config: Config, *, batch_size: int, shard_index: int = 0, shard_count: int = 1) -> Batches:
    """Each validation clip once, in the list's order; the last batch is filled with rows of weight 0.

    Every shard has the same number of batches.

    Args:
        config: of the run.
        batch_size: rows in a batch of this shard.
        shard_index: see `make_train`.
        shard_count: see `make_train`.

    Raises:
        UserError: when the list can't be used.
    """
    source = make_source(config, "val")
    indices = np.arange(len(source))
    indices = np.pad(indices, (0, -len(indices) % (batch_size * shard_count)), constant_values=_PADDING)
    indices = indices[shard_index::shard_count]

    def record(index: np.ndarray) -> Batch:
        return _record(config.data, source, int(index), None)

    dataset = grain.MapDataset.source(indices).map(record)
    return _batches(dataset, config.data, int(np.sum(indices != _PADDING)), batch_size)


def _record(data: Data, source: Source, index: int, rng: np.random.Generator | None) -> Batch:
    clip, label, weight, reason = None, 0, 0.0, ""
    if index != _PADDING:
        try:
            clip, label = source.read(index, rng)
            weight = 1.0
        except decode.UnreadableClip as error:
            reason = str(error)
    if clip is None:
        clip = np.zeros((data.num_frames, data.image_size, data.image_size, 3), np.uint8)
    return {
        "clip": clip,
        "label": np.int32(label),
        "weight": np.float32(weight),
        "index": np.int32(index),
        "reason": np.array(reason, object),
    }


def _batches(dataset: grain.MapDataset, data: Data, num_clips: int, batch_size: int) -> Batches:
    # Two batches ahead: Grain's default of 500 clips would hold 600 MB at the published sizes.
    options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=2 * batch_size)
    rows = dataset.to_iter_dataset(options)
    return Batches(rows.batch(batch_size, drop_remainder=True), num_clips, data.max_bad_share)


def _check_batch(batch_size: int, num_clips: int) -> None:
    if batch_size > num_clips:
        raise UserError(
            f"batch size: expected at most the number of training clips {num_clips}, found {batch_size}"
        )
