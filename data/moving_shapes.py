"""moving_shapes as files: what `adafuse_jax.input.moving_shapes` draws, stored."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from adafuse_jax.input import moving_shapes
from data.builder import VideoBuilder
from data.encode import Encoded, record, to_jpeg
from data.listing import UNKNOWN, Item, Listing

_SEED = 0  # as in training straight from the drawing


class MovingShapes(VideoBuilder):
    """Textured shapes that move, in 12 classes of 6 time-reversed pairs: drawn, nothing to download.

    Args:
        image_size: height and width, pixels.
        num_frames: drawn and stored of a clip.
        train_clips: number of training clips.
        val_clips: number of validation clips.
        quality: of the JPEGs, 1..100.
        config: the level, "easy", "medium" or "hard".
        **kwargs: of `VideoBuilder`.
    """

    CLASSES = len(moving_shapes.CLASSES)
    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS's name and type
        tfds.core.BuilderConfig(name=level, description=f"The level {level!r}.")
        for level in moving_shapes.LEVELS
    ]

    def __init__(
        self,
        *,
        image_size: int = 48,
        num_frames: int = 8,
        train_clips: int = 20_000,
        val_clips: int = 600,
        quality: int = 95,
        **kwargs: Any,
    ):
        self._image_size, self._num_frames = image_size, num_frames
        self._lengths = {"train": train_clips, "validation": val_clips}
        super().__init__(quality=quality, **kwargs)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """See `VideoBuilder`."""
        parser.add_argument("--config", choices=list(moving_shapes.LEVELS), default="easy", help="level")
        parser.add_argument("--image_size", type=int, default=48, help="pixels")
        parser.add_argument("--num_frames", type=int, default=8, help="drawn and stored of a clip")
        parser.add_argument("--train_clips", type=int, default=20_000)
        parser.add_argument("--val_clips", type=int, default=600)
        parser.add_argument("--quality", type=int, default=95, help="of the JPEGs, 1..100")

    @property
    def encoder(self) -> "ShapesEncoder":
        """See `VideoBuilder`."""
        return ShapesEncoder(
            self.builder_config.name, self._image_size, self._num_frames, self._stored["quality"]
        )

    def listing(self, manual_dir: Path) -> Listing:
        """The clips to draw; their labels come with the drawing."""
        del manual_dir
        splits = {
            split: [Item(f"{split}_{index:06d}", UNKNOWN, (split, index)) for index in range(length)]
            for split, length in self._lengths.items()
        }
        return Listing(list(moving_shapes.CLASSES), splits)


@dataclasses.dataclass(frozen=True)
class ShapesEncoder:
    """Draws and encodes a clip (`Item.source` is its split and index)."""

    level: str
    image_size: int
    num_frames: int
    quality: int

    def __call__(self, item: Item) -> Encoded:
        """The clip, encoded."""
        split, index = item.source
        clips = moving_shapes.MovingShapes(
            {"train": "train", "validation": "val"}[split],
            self.num_frames,
            self.level,
            index + 1,
            _SEED,
            self.image_size,
        )
        drawn = clips[index]
        frames = [to_jpeg(np.ascontiguousarray(image), self.quality) for image in drawn["clip"]]
        item = dataclasses.replace(item, label=drawn["label"])
        return Encoded(record(item, self.num_frames, np.arange(self.num_frames), frames))
