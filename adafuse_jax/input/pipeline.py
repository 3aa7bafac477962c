"""Batches of clips by Grain: source -> shuffle -> repeat -> read -> share of this process -> batch.

A batch is {"clip": uint8 (B, T, H, W, 3), "label": int32 (B,), "weight": float32 (B,)}; in an evaluation
with V > 1 views of each clip, "clip" is (B, V, T, H, W, 3). The weight is 1, or 0 for a row that isn't a
clip: the padding of the last batch of an evaluation, and a clip that couldn't be read (its pixels are 0).

Each record is one clip, so the position in the data is one number, good with any number of threads; what
a record holds depends on (seed, position) alone. Of several processes each is a shard: it reads a block of
every batch, the first shard the first rows and so on. Put together in order, the shards' batches are those
of a single process, so a run may also go on with another number of processes.
"""

import logging
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from adafuse_jax.config import Config, Data
from adafuse_jax.errors import UserError
from adafuse_jax.input import decode, views
from adafuse_jax.input.sources import Source, make_source

_log = logging.getLogger(__name__)

_PADDING = -1  # index of a row that fills the last batch

Batch = dict[str, np.ndarray]


class Batches(Iterator[Batch]):
    """A shard's blocks of the batches, in order, from `position` on.

    Attributes:
        num_clips: clips of the split, over all shards.
        bad: path and reason, by index in the list, of every clip that this shard couldn't read so far.
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

    def get_state(self) -> dict[str, Any]:
        """The position and the indices of the unreadable clips so far, as JSON can hold them."""
        return {"position": self.position, "bad": sorted(self.bad)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a state that `get_state` gave."""
        self.position = state["position"]
        self.bad = dict.fromkeys(state.get("bad", ()), "reported before")

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            UserError: when more than max_bad_share of the clips turned out unreadable to this shard. Each
                counts for itself, so several may together have met more before one alone has.
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


class _Share:
    """The rows of one shard: its block of every batch of a data set."""

    def __init__(self, dataset: grain.MapDataset, batch_size: int, shard_index: int, shard_count: int):
        if not 0 <= shard_index < shard_count:
            raise ValueError(f"shard: expected 0..{shard_count - 1}, found {shard_index}")
        if batch_size % shard_count:
            raise UserError(
                f"batch size: expected a multiple of the {shard_count} processes, found {batch_size}"
            )
        self.block = batch_size // shard_count
        self._dataset, self._batch_size, self._first = dataset, batch_size, shard_index * self.block

    def __len__(self) -> int:
        return len(self._dataset) // self._batch_size * self.block

    def __getitem__(self, row: int) -> Batch:
        batch, place = divmod(row, self.block)
        return self._dataset[batch * self._batch_size + self._first + place]


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
    """Endless batches of randomly sampled, cropped, flipped and coloured clips, shuffled anew for each pass.

    Args:
        config: of the run.
        batch_size: clips in a batch, over all shards.
        seed: of the order and the augmentation.
        shard_index: which of the processes this is.
        shard_count: number of processes; each gets batch_size / shard_count clips of every batch.

    Raises:
        UserError: for a batch larger than the training set or that the processes can't share evenly, a list
            that can't be used, or a wrong seed.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed: expected 0 or more and less than 2**32, found {seed}")
    source = make_source(config, "train")
    _check_batch(batch_size, len(source))

    def record(index: np.ndarray, rng: np.random.Generator) -> Batch:
        return _record(config.data, source, int(index), rng)

    indices = np.arange(len(source))
    dataset = grain.MapDataset.source(indices).seed(seed).shuffle().repeat().random_map(record)
    share = _Share(dataset, batch_size, shard_index, shard_count)
    return _batches(share, config.data, len(source), 1)


def make_eval(config: Config, *, batch_size: int, shard_index: int = 0, shard_count: int = 1) -> Batches:
    """Each validation clip once, in the list's order; the last batches are filled with rows of weight 0.

    Every shard has the same number of batches.

    Args:
        config: of the run.
        batch_size: see `make_train`.
        shard_index: see `make_train`.
        shard_count: see `make_train`.

    Raises:
        UserError: when the list can't be used, or the processes can't share a batch evenly.
    """
    source = make_source(config, "val")

    def record(index: np.ndarray) -> Batch:
        return _record(config.data, source, int(index), None)

    indices = np.arange(len(source))
    indices = np.pad(indices, (0, -len(indices) % batch_size), constant_values=_PADDING)
    share = _Share(grain.MapDataset.source(indices).map(record), batch_size, shard_index, shard_count)
    return _batches(share, config.data, len(source), views.count(config.data))


def _record(data: Data, source: Source, index: int, rng: np.random.Generator | None) -> Batch:
    clip, label, weight, reason = None, 0, 0.0, ""
    if index != _PADDING:
        try:
            clip, label = source.read(index, rng)
            weight = 1.0
        except decode.UnreadableClip as error:
            reason = str(error)
    if clip is None:
        several = (views.count(data),) if rng is None and views.count(data) > 1 else ()
        clip = np.zeros((*several, data.num_frames, data.image_size, data.image_size, 3), np.uint8)
    return {
        "clip": clip,
        "label": np.int32(label),
        "weight": np.float32(weight),
        "index": np.int32(index),
        "reason": np.array(reason, object),
    }


def _batches(share: _Share, data: Data, num_clips: int, num_views: int) -> Batches:
    # Two batches ahead: Grain's default of 500 clips would hold 600 MB at the published sizes. Several
    # views of a clip count as so many clips.
    ahead = max(data.threads, 2 * share.block // num_views)
    options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=ahead)
    rows = grain.MapDataset.source(share).to_iter_dataset(options)
    return Batches(rows.batch(share.block, drop_remainder=True), num_clips, data.max_bad_share)


def _check_batch(batch_size: int, num_clips: int) -> None:
    if batch_size > num_clips:
        raise UserError(
            f"config.train.batch_size: expected at most the number of training clips {num_clips}, found "
            f"{batch_size}"
        )
