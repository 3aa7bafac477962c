"""What the model sees of a clip: sampled, cropped, mirrored and coloured as the config says."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from adafuse_jax.config import Data
from adafuse_jax.input import colour, sampling, transforms
from adafuse_jax.input.decode import Image

# Given the choice of frames among N, reads them.
ReadFrames = Callable[[Callable[[int], Sequence[int]]], list[Image]]


def count(data: Data) -> int:
    """V, the views of a clip in evaluation."""
    return data.test_clips * data.test_crops


def training_view(
    data: Data, read_frames: ReadFrames, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "T size size 3"], bool]:
    """A random view of a clip, alike for all its frames, and whether it is mirrored.

    Args:
        data: of the config.
        read_frames: reads the frames of the clip.
        rng: source of all chance.
    """
    dense = data.sampling == "dense"
    sample = sampling.dense_training_indices if dense else sampling.training_indices
    frames = read_frames(lambda num_frames: sample(num_frames, data.num_frames, rng.integers))
    view = transforms.multi_scale_crop(frames, data.image_size, data.scales, rng.integers)
    mirrored = bool(rng.random() < data.flip)
    if mirrored:
        view = transforms.horizontal_flip(view)
    if any(data.colour_jitter):
        view = colour.jitter(view, data.colour_jitter, rng.uniform)
    return view, mirrored


def evaluation_views(data: Data, read_frames: ReadFrames) -> UInt8[np.ndarray, "V T size size 3"]:
    """All views of a clip that evaluation averages over: for each sampling of its frames, each crop.

    One of each is the published test.

    Args:
        data: of the config.
        read_frames: reads the frames of the clip; called once.
    """
    sample = sampling.dense_indices if data.sampling == "dense" else sampling.shifted_indices
    frames = read_frames(lambda num_frames: sample(num_frames, data.num_frames, data.test_clips).ravel())
    crops = transforms.crops_along(frames, data.resize, data.image_size, data.test_crops)
    crops = crops.reshape(data.test_crops, data.test_clips, data.num_frames, *crops.shape[2:])
    return crops.swapaxes(0, 1).reshape(-1, *crops.shape[2:])
