"""Clips by index: of a list, of prepared data, or drawn on demand."""

from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int, UInt8

from adafuse_jax.config import Config, Data
from adafuse_jax.errors import UserError
from adafuse_jax.input import decode, manifest, mirror, prepared, views
from adafuse_jax.input.moving_shapes import CLASSES, MovingShapes

_SHAPES_SEED = 0  # moving_shapes is one data set, whatever the run's seed: the split tells its clips apart

Pixels = UInt8[np.ndarray, "*V T H W 3"]


class Source(Protocol):
    """Clips by index."""

    def __len__(self) -> int: ...

    def read(self, index: int, rng: np.random.Generator | None) -> tuple[Pixels, int]:
        """The clip and its label; with `rng` as for training, without as for evaluation.

        The clip is (T, H, W, 3), or (V, T, H, W, 3) where evaluation takes more than one view of it.

        Raises:
            UnreadableClip: for a clip that can't be read.
        """


class VideoList:
    """The clips of config.data.train_list or val_list."""

    def __init__(self, data: Data, split: str):
        path = getattr(data, f"{split}_list")
        if not path:
            raise UserError(f"config.data.{split}_list: expected a list of clips, found nothing")
        self._data, self._mirrored = data, _mirrored_labels(data, split)
        self._clips = manifest.read_list(path, data.num_classes, data.root)

    def __len__(self) -> int:
        return len(self._clips)

    def read(self, index: int, rng: np.random.Generator | None) -> tuple[Pixels, int]:
        clip, template = self._clips[index], self._data.frame_template

        def read_frames(choose):
            return decode.read_frames(clip, choose, template, fast=rng is not None)

        return _look(self._data, self._mirrored, read_frames, clip.label, rng)


class Prepared:
    """The clips of config.data.prepared_dir."""

    def __init__(self, data: Data, split: str):
        class_names(data)  # checks their number
        self._data, self._mirrored = data, _mirrored_labels(data, split)
        self._clips = prepared.PreparedClips(data.prepared_dir, "train" if split == "train" else "validation")

    def __len__(self) -> int:
        return len(self._clips)

    def read(self, index: int, rng: np.random.Generator | None) -> tuple[Pixels, int]:
        clip = self._clips[index]
        # Uniform sampling takes the stored frame nearest to a wanted one; a window of 64 may hold but few.
        if self._data.sampling == "dense" and len(clip.frames) < clip.num_frames:
            raise UserError(
                "config.data.sampling: dense expects data prepared with --max_frames=0, which stores all "
                f"frames; found {len(clip.frames)} of {clip.num_frames} of {clip.name}"
            )

        def read_frames(choose):
            return clip.read_frames(choose, fast=rng is not None)

        return _look(self._data, self._mirrored, read_frames, clip.label, rng)


class Shapes:
    """The clips of moving_shapes, drawn at the size wanted: neither cropped nor flipped."""

    def __init__(self, data: Data, split: str):
        length = data.train_clips if split == "train" else data.val_clips
        self._clips = MovingShapes(
            split, data.num_frames, data.level, length, seed=_SHAPES_SEED, image_size=data.image_size
        )

    def __len__(self) -> int:
        return len(self._clips)

    def read(self, index: int, rng: np.random.Generator | None) -> tuple[Pixels, int]:
        record = self._clips[index]
        return record["clip"], record["label"]


def make_source(config: Config, split: str) -> Source:
    """The clips of a split, "train" or "val".

    Raises:
        UserError: for a list or prepared data that can't be used, wrong pairs of mirrored classes, or an
            argument that moving_shapes refuses.
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


def _mirrored_labels(data: Data, split: str) -> Int[np.ndarray, " C"]:
    if split != "train" or not data.flip_labels:
        return np.arange(data.num_classes)
    return mirror.mirrored_labels(Path(data.flip_labels), class_names(data))


def _look(
    data: Data,
    mirrored_labels: Int[np.ndarray, " C"],
    read_frames: views.ReadFrames,
    label: int,
    rng: np.random.Generator | None,
) -> tuple[Pixels, int]:
    if rng is None:
        seen = views.evaluation_views(data, read_frames)
        return (seen if len(seen) > 1 else seen[0]), label
    view, mirrored = views.training_view(data, read_frames, rng)
    return view, int(mirrored_labels[label]) if mirrored else label
