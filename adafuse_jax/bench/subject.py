"""What is timed: a model, of the zoo or trained, and clips for it to look at."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from adafuse_jax import convert
from adafuse_jax.config import Data
from adafuse_jax.errors import UserError
from adafuse_jax.input import decode, views
from adafuse_jax.input.manifest import Clip
from adafuse_jax.models.arnet import ARNet
from adafuse_jax.models.recognizer import Recognizer
from adafuse_jax.models.zoo import create_model, options_of
from adafuse_jax.predict import as_filmed
from adafuse_jax.train import run
from adafuse_jax.train.step import normalize


def of_zoo(
    name: str, image_size: int | None = None, num_frames: int | None = None, **options: Any
) -> tuple[Recognizer | ARNet, Data]:
    """A model with random weights, and how it looks at videos: 8 frames of 224 pixels, unless told otherwise.

    Args:
        name: in the zoo.
        image_size: pixels.
        num_frames: of a clip.
        options: of `create_model`.

    Raises:
        UserError: for an unknown name.
    """
    data = _seen(Data(), image_size, num_frames)
    if "num_frames" in options_of(name):
        options["num_frames"] = data.num_frames
    return create_model(name, **options), data


def of_checkpoint(
    checkpoint: Path, which: str = "best", image_size: int | None = None, num_frames: int | None = None
) -> tuple[Recognizer | ARNet, Data]:
    """A trained model, and how it looks at videos: as it was trained to, unless told otherwise.

    Args:
        checkpoint: a run's workdir, or what `convert` wrote.
        which: of its checkpoints, "best" or "latest".
        image_size: pixels.
        num_frames: of a clip.

    Raises:
        UserError: where there is no such checkpoint.
    """
    trained = run.load(checkpoint, which)
    model = convert.model_of(trained)
    # Or each call would bring the weights from the host.
    nnx.update(model, jax.device_put(nnx.state(model)))
    return model, as_filmed(_seen(trained.config.data, image_size, num_frames))


def _seen(data: Data, image_size: int | None, num_frames: int | None) -> Data:
    """One clip of a video, of its centre."""
    size = image_size or data.image_size
    return dataclasses.replace(
        data,
        image_size=size,
        resize=round(size * data.resize / data.image_size),
        num_frames=num_frames or data.num_frames,
        test_clips=1,
        test_crops=1,
    )


def clips(data: Data, batch: int = 1, video: Path | None = None) -> Float[Array, "b t h w 3"]:
    """Clips for a model that looks at videos so, normalised.

    Args:
        data: of `of_zoo` or `of_checkpoint`.
        batch: number of clips.
        video: that all of them are of; None: random frames.

    Raises:
        UserError: for a video that isn't there or can't be read.
    """
    if video is None:
        shape = (batch, data.num_frames, data.image_size, data.image_size, 3)
        return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
    if not video.is_file():
        raise UserError(f"video {video}: expected a file, found none")
    try:
        clip = views.evaluation_views(data, lambda choose: decode.read_frames(Clip(str(video), 0), choose))
    except decode.UnreadableClip as error:
        raise UserError(f"video {error}") from error
    return normalize(jnp.repeat(jnp.asarray(clip), batch, 0), data)
