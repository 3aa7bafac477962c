"""Clips that `python -m data.prepare` has prepared: ArrayRecord shards in a folder that TFDS can read.

A record is one clip:
    frames         JPEG bytes of the stored frames, in order
    frame_indices  the index that each of them has in the original clip
    num_frames     N, frames of the original clip
    label          its class; -1 where the owner of the data set keeps it to himself
    name           what the owner calls it
Frames are sampled by the original N; where a wanted frame isn't stored, the nearest stored one stands for
it. `stored_indices` stores those that evaluation wants.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from adafuse_jax.errors import UserError
from adafuse_jax.input import decode

METADATA = "dataset_info.json"  # TFDS writes it last, so where it lies all shards do


def stored_indices(num_frames: int, max_frames: int) -> Int[np.ndarray, " M"]:
    """Which frames of a clip to store: frame int(N/M * j) for j < M = max_frames, or all where N <= M.

    Of 32 stored frames, the validation indices of T = 8 and T = 16 are exactly every fourth and every
    second: int(N/T/2 + N/T*i) = int(N/32 * (16/T + 32/T*i)), without rounding as T is a power of two.

    Args:
        num_frames: N.
        max_frames: M; 0 stores all.
    """
    if not 0 < max_frames < num_frames:
        return np.arange(num_frames)
    return (num_frames / max_frames * np.arange(max_frames)).astype(int)


def nearest(wanted: Sequence[int], stored: Sequence[int]) -> Int[np.ndarray, " T"]:
    """Place in `stored` (rising) of the frame nearest to each wanted one, the earlier of two as near."""
    stored = np.asarray(stored)
    return np.searchsorted((stored[:-1] + stored[1:]) / 2, wanted)


@dataclasses.dataclass(frozen=True)
class Record:
    """A prepared clip, its frames still JPEGs; those that nobody asks for are never copied."""

    name: str
    label: int
    num_frames: int
    frame_indices: Int[np.ndarray, " M"]
    frames: Sequence[bytes]

    def read_frames(self, choose: Callable[[int], Sequence[int]], fast: bool = False) -> list[decode.Image]:
        """The chosen frames in RGB; only they are decoded.

        Args:
            choose: given N of the original clip, the wanted indices in 0..N-1.
            fast: see `decode.decode_image`.

        Raises:
            UnreadableClip: for a broken JPEG.
        """
        places = nearest(choose(self.num_frames), self.frame_indices).tolist()
        images = {i: decode.decode_image(self.frames[i], Path(self.name), fast) for i in set(places)}
        return [images[i] for i in places]


class PreparedClips:
    """The clips of a split by index, from any number of threads; a pickled copy opens the files anew.

    Args:
        directory: what `data.prepare` wrote: the folder of dataset_info.json.
        split: of the data set, as "train" or "validation".

    Attributes:
        class_names: in label order.

    Raises:
        UserError: for a folder that isn't a whole prepared data set, a split that it hasn't, or without
            TFDS installed.
    """

    def __init__(self, directory: str | Path, split: str):
        self._directory, self._split = Path(directory), split
        builder = _open(self._directory)
        info = builder.info
        if split not in info.splits:
            raise UserError(
                f"prepared data {directory}: expected the split {split!r}, found {', '.join(info.splits)}"
            )
        for path in info.splits[split].filepaths:
            if not path.exists():
                raise UserError(f"prepared data {directory}: expected the shard {path.name}, found none")
        self.class_names = info.features["label"].names
        raw = _tfds().decode.DeserializeMethod.RAW_BYTES
        self._records = builder.as_data_source(split, deserialize_method=raw)
        self._example = _example()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """The clip at an index.

        Raises:
            UnreadableClip: when its shard is damaged.
        """
        try:
            record = self._records[index]
            if not record:  # what some cut shards give
                raise ValueError("an empty record")
        except (ValueError, RuntimeError, OSError) as error:
            raise decode.UnreadableClip(
                self._directory, f"clip {index} of {self._split}: {' '.join(str(error).split())}"
            ) from error
        fields = self._example.FromString(record).features.feature
        return Record(
            fields["name"].bytes_list.value[0].decode(),
            fields["label"].int64_list.value[0],
            fields["num_frames"].int64_list.value[0],
            np.array(fields["frame_indices"].int64_list.value),
            fields["frames"].bytes_list.value,
        )

    def __reduce__(self):
        return type(self), (self._directory, self._split)


def class_names(directory: str | Path) -> list[str]:
    """Names of a prepared data set's classes in label order; raises as `PreparedClips`."""
    return _open(Path(directory)).info.features["label"].names


def _open(directory: Path):
    """The TFDS builder of a folder."""
    if directory == Path():
        raise UserError("config.data.prepared_dir: expected a folder that data.prepare wrote, found nothing")
    if not (directory / METADATA).is_file():
        inside = sorted(directory.glob(f"*/**/{METADATA}"))
        hint = f" (did you mean {inside[0].parent}?)" if inside else ""
        raise UserError(
            f"prepared data {directory}: expected a folder with {METADATA}, as data.prepare writes it, "
            f"found none{hint}"
        )
    builder = _tfds().builder_from_directory(directory)
    missing = {field.name for field in dataclasses.fields(Record)} - set(builder.info.features)
    if missing:
        raise UserError(
            f"prepared data {directory}: expected a data set of data.prepare, found one without "
            f"{', '.join(sorted(missing))}"
        )
    return builder


def _tfds():
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"prepared data: expected TFDS (pip install 'adafuse_jax[data]'), found: {error}"
        ) from error
    return tfds


def _example():
    """The message of a record, tf.train.Example. TFDS's own parsing of it copies every frame."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example
