"""What the TFDS builders of all data sets share."""

import argparse
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from adafuse_jax.input.decode import UnreadableClip
from data.encode import Encoded, VideoEncoder
from data.listing import Item, Listing


def features(num_classes: int | None = None) -> tfds.features.FeaturesDict:
    """The features of a prepared clip, see `adafuse_jax.input.prepared`."""
    return tfds.features.FeaturesDict(
        {
            "frames": tfds.features.Sequence(
                tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
            ),
            "frame_indices": tfds.features.Sequence(np.int32),
            "num_frames": np.int32,
            "label": tfds.features.ClassLabel(num_classes=num_classes),
            "name": tfds.features.Text(),
        }
    )


class VideoBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of short labelled videos.

    Usable as any TFDS builder (`download_and_prepare`, one process, not resumable); `data.prepare` writes
    the same records with all cores. `self.listing(manual_dir)` and `self.encoder` are the two halves that
    a data set fills in.

    Args:
        short_side: see `VideoEncoder`.
        quality: see `VideoEncoder`.
        max_frames: see `VideoEncoder`.
        **kwargs: of `tfds.core.GeneratorBasedBuilder`.
    """

    VERSION = tfds.core.Version("1.0.0")
    HOMEPAGE: ClassVar[str] = ""
    CITATION: ClassVar[str] = ""
    CLASSES: ClassVar[int | None] = None  # number of classes as published
    FOLDERS: ClassVar[bool] = False  # clips are JPEG folders, at FPS
    FPS: ClassVar[float] = 0.0

    def __init__(self, *, short_side: int = 256, quality: int = 90, max_frames: int = 32, **kwargs: Any):
        self._stored = {"short_side": short_side, "quality": quality, "max_frames": max_frames}
        super().__init__(file_format="array_record", **kwargs)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds the flags of `data.prepare` for this data set; they become keywords of the constructor."""
        parser.add_argument("--manual_dir", type=Path, required=True, help="the owner's files")
        parser.add_argument("--short_side", type=int, default=256, help="pixels; smaller frames stay")
        parser.add_argument("--quality", type=int, default=90, help="of new JPEGs, 1..100")
        parser.add_argument("--max_frames", type=int, default=32, help="stored of a clip; 0: all")

    @classmethod
    def first_words(cls) -> str:
        """What the data set is, from its docstring."""
        return inspect.getdoc(cls).split("\n\n")[0]

    def listing(self, manual_dir: Path) -> Listing:
        """The clips of the owner's files.

        Raises:
            UserError: for files that aren't as the owner ships them.
        """
        raise NotImplementedError

    @property
    def encoder(self) -> Callable[[Item], Encoded]:
        """Reads and encodes a clip; can be pickled."""
        return VideoEncoder(**self._stored, folders=self.FOLDERS, fps=self.FPS)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.first_words(),
            features=features(),
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
            disable_shuffling=True,  # the owner's order, so that evaluation reads it in his order
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        listing = self.listing(Path(dl_manager.manual_dir) if self.MANUAL_DOWNLOAD_INSTRUCTIONS else Path())
        self.info.features["label"].names = listing.class_names
        return {split: self._generate_examples(items) for split, items in listing.splits.items()}

    def _generate_examples(self, items: list[Item]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, item in enumerate(items):
            try:
                yield number, self.encoder(item).record
            except UnreadableClip as error:
                raise RuntimeError(f"{error}; python -m data.prepare leaves such clips out") from error

    def write_metadata(self, class_names: list[str], shards: dict[str, list[tuple[int, int]]]) -> None:
        """Writes what makes written shards a TFDS data set; dataset_info.json last.

        Args:
            class_names: in label order.
            shards: (clips, bytes) of each shard of each split.
        """
        self.info.features["label"].names = class_names
        splits = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[clips for clips, _ in sizes],
                num_bytes=sum(num_bytes for _, num_bytes in sizes),
                filename_template=self._shards(split),
            )
            for split, sizes in shards.items()
        ]
        self.info.set_splits(tfds.core.splits.SplitDict(splits))
        self.info.write_to_directory(self.data_dir)

    def shard_path(self, split: str, index: int, count: int) -> Path:
        """Where TFDS looks for a shard."""
        return Path(self._shards(split).sharded_filepath(shard_index=index, num_shards=count))

    def _shards(self, split: str) -> tfds.core.ShardedFileTemplate:
        return tfds.core.ShardedFileTemplate(
            data_dir=self.data_dir, dataset_name=self.name, split=split, filetype_suffix="array_record"
        )
