"""What a config's values must be, as far as they tell it themselves: choices, ranges, and what fits together.

What needs the machine (devices, files, the model) is checked by `train.preflight`.
"""

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from adafuse_jax.errors import UserError, unknown

if TYPE_CHECKING:
    from adafuse_jax.config import Config, Data

_CHOICES = {
    "data.name": ("moving_shapes", "prepared", "video_list"),
    "data.level": ("easy", "medium", "hard"),
    "data.sampling": ("uniform", "dense"),
    "data.channel_order": ("rgb", "bgr"),
    "optimizer.name": ("sgd", "adamw"),
    "optimizer.schedule": ("step", "cosine"),
    "loss.flops_loss": ("real", "upper"),
    "train.precision": ("float32", "bfloat16"),
}


class _Range(NamedTuple):
    """What is expected, whether a value is so, and the fields it is expected of."""

    expected: str
    holds: Callable[[Any], bool]
    fields: str


def _numbers_frames(template: str) -> bool:
    try:
        return template.format(1) != template.format(2)
    except (AttributeError, IndexError, KeyError, ValueError):
        return False


def _rise(values: Sequence[float]) -> bool:
    return all(a < b for a, b in itertools.pairwise(values))


_RANGES = (
    _Range(
        "more than 0",
        lambda value: value > 0,
        "data.num_classes data.num_frames data.image_size data.resize data.threads data.train_clips "
        "data.val_clips data.test_clips data.max_value optimizer.learning_rate train.epochs train.batch_size "
        "train.eval_batch_size train.eval_every_epochs train.log_every_steps train.accumulate",
    ),
    _Range(
        "0 or more",
        lambda value: value >= 0,
        "optimizer.weight_decay optimizer.bias_lr_multiplier optimizer.clip_norm optimizer.warmup_epochs "
        "loss.flops_weight loss.uniform_weight loss.threshold_weight train.checkpoint_every_steps "
        "train.norm_clips train.max_skipped_steps",
    ),
    _Range("0 to 1", lambda value: 0 <= value <= 1, "data.flip data.max_bad_share loss.label_smoothing"),
    _Range("0 or more and less than 1", lambda value: 0 <= value < 1, "optimizer.momentum train.ema_decay"),
    _Range("more than 0 and at most 1", lambda value: 0 < value <= 1, "optimizer.decay_factor"),
    _Range("0 or more and less than 2**32", lambda value: 0 <= value < 2**32, "train.seed"),
    _Range("3 numbers, one a colour", lambda value: len(value) == 3, "data.mean data.std"),
    _Range("more than 0 for each colour", lambda value: all(v > 0 for v in value), "data.std"),
    _Range(
        "shares of the short side, each more than 0 and at most 1",
        lambda value: len(value) > 0 and all(0 < v <= 1 for v in value),
        "data.scales",
    ),
    _Range("1 or 3", lambda value: value in (1, 3), "data.test_crops"),
    _Range(
        "3 strengths of 0 to 1 and one of 0 to 0.5",
        lambda value: (
            len(value) == 4 and all(0 <= v <= m for v, m in zip(value, (1, 1, 1, 0.5), strict=True))
        ),
        "data.colour_jitter",
    ),
    _Range("a place for the frame's number, as img_{:05d}.jpg", _numbers_frames, "data.frame_template"),
    _Range("rising epochs, more than 0", lambda value: _rise((0, *value)), "optimizer.decay_epochs"),
    _Range(
        "two rising shares of the steps in [0, 1]",
        lambda value: len(value) == 2 and 0 <= value[0] <= value[1] <= 1,
        "loss.flops_warmup",
    ),
)

# What clips drawn as they are used have no use for: a look at a video in some way, and where it lies.
_OF_VIDEOS = (
    *("sampling", "test_clips", "test_crops", "flip", "flip_labels", "colour_jitter"),
    *("train_list", "val_list", "root", "class_names", "prepared_dir"),
)

# What clips can be drawn of: motion, and shapes that can be told apart.
_LEAST_DRAWN = {"num_frames": 2, "image_size": 16}


def check(config: "Config") -> None:
    """Raises UserError, naming the field, for the first value that can't be."""
    for name, choices in _CHOICES.items():
        value = operator.attrgetter(name)(config)
        if value not in choices:
            raise unknown(f"value of config.{name}", value, choices)
    for expected, holds, fields in _RANGES:
        for name in fields.split():
            value = operator.attrgetter(name)(config)
            if not holds(value):
                raise UserError(f"config.{name}: expected {expected}, found {value!r}")
    _check_finite(config)
    _check_data(config.data)
    _check_schedule(config)
    _check_batch(config)


def _check_finite(config: "Config") -> None:
    for section, fields in dataclasses.asdict(config).items():
        for name, value in (fields.pop("options", {}) | fields).items():
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
                raise UserError(f"config.{section}.{name}: expected finite numbers, found {value}")


def _check_data(data: "Data") -> None:
    if data.name == "moving_shapes":
        default = type(data)()
        for name in _OF_VIDEOS:
            wanted, found = getattr(default, name), getattr(data, name)
            if found != wanted:
                raise UserError(
                    f"config.data.{name}: expected {wanted!r} with moving_shapes, found {found!r}"
                )
        for name, least in _LEAST_DRAWN.items():
            if getattr(data, name) < least:
                raise UserError(
                    f"config.data.{name}: expected at least {least} with moving_shapes, found "
                    f"{getattr(data, name)}"
                )
    elif data.resize < data.image_size:
        raise UserError(
            f"config.data.resize: expected at least image_size {data.image_size}, found {data.resize}"
        )
    if data.flip_labels and not data.flip:
        raise UserError("config.data.flip_labels: expected config.data.flip above 0 with it, found 0")


def _check_batch(config: "Config") -> None:
    train = config.train
    if train.batch_size % train.accumulate:
        raise UserError(
            f"config.train.accumulate: expected a divisor of batch_size {train.batch_size}, found "
            f"{train.accumulate}"
        )
    together = train.batch_size // train.accumulate
    if train.norm_clips and together % train.norm_clips:
        raise UserError(
            f"config.train.norm_clips: expected a divisor of the {together} clips that go through the model "
            f"together, found {train.norm_clips}"
        )


def _check_schedule(config: "Config") -> None:
    optimizer, epochs = config.optimizer, config.train.epochs
    warmup = optimizer.warmup_epochs
    if warmup >= epochs:
        raise UserError(
            f"config.optimizer.warmup_epochs: expected less than the run's {epochs:g} epochs, "
            f"found {warmup:g}"
        )
    if optimizer.schedule == "step" and optimizer.decay_epochs and optimizer.decay_epochs[0] < warmup:
        raise UserError(
            f"config.optimizer.decay_epochs: expected none before the end of the warm-up after {warmup:g} "
            f"epochs, found {optimizer.decay_epochs}"
        )
