"""What a run is made of: frozen dataclasses, filled from the `ml_collections` files in configs/.

A config file sets only what differs from the defaults here. Field names are the names on the command
line: `--config.optimizer.learning_rate=0.01`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from adafuse_jax import config_checks
from adafuse_jax.errors import UserError, unknown

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Model:
    """Name in the zoo; every further field of `config.model` goes to `create_model` as a keyword."""

    name: str = "adafuse_tsn_r50"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Data:
    """Where clips come from and how they are sampled, cropped and normalised (reference.md, section 3)."""

    name: str = "video_list"  # "video_list", "prepared" or "moving_shapes"
    num_classes: int = 174
    num_frames: int = 8  # T
    image_size: int = 224  # pixels, square crop
    resize: int = 256  # pixels, short side before the crops of evaluation
    sampling: str = "uniform"  # "uniform" over the whole clip, or "dense" in a window of 64 frames
    # Evaluation averages a clip's logits over test_clips samplings times test_crops crops, and adds up
    # their MACs: what was computed. 2 x 3 with image_size = resize is the "full resolution" test of TSM.
    test_clips: int = 1
    test_crops: int = 1  # 1: centre; 3: start, centre and end of the long side
    # The model sees (pixel - mean) / std, pixels from 0 to max_value, colours in the order of the three.
    channel_order: str = "rgb"  # "rgb" or "bgr"
    max_value: float = 1.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    # video_list: text files of "path label" or "folder frames label" lines, paths relative to `root`
    # (the list's own folder when empty).
    train_list: str = ""
    val_list: str = ""
    root: str = ""
    class_names: str = ""  # text file, one name a line, in label order; numbers are used when empty
    frame_template: str = "img_{:05d}.jpg"  # 1-based frame number inside a JPEG folder
    flip: float = 0.0  # probability of a horizontal flip; where labels know left from right, 0 or
    flip_labels: str = ""  # text file of the classes that then swap, two a line; see configs/flip_labels
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)  # multi-scale crop, shares of the short side
    # Strength of changes in brightness, contrast, saturation (each up to 1) and hue (up to 0.5).
    colour_jitter: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    max_bad_share: float = 0.01  # a run stops when more than this share of the clips read can't be read
    # prepared
    prepared_dir: str = ""  # as `python -m data.prepare` names it at its end
    # moving_shapes
    level: str = "easy"  # "easy", "medium" or "hard"
    train_clips: int = 20_000  # clips in an epoch of training
    val_clips: int = 600
    threads: int = 2  # reading threads per process


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Published: SGD, momentum 0.9, biases at twice the rate without decay, BatchNorm without decay."""

    name: str = "sgd"  # "sgd" or "adamw"
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_lr_multiplier: float = 2.0
    clip_norm: float = 20.0  # global norm of the gradient; 0 switches clipping off
    schedule: str = "step"  # "step" or "cosine"
    decay_epochs: tuple[float, ...] = (20.0, 40.0)  # step: the rate falls by `decay_factor` at each
    decay_factor: float = 0.1
    warmup_epochs: float = 0.0  # linear rise from 0, before either schedule


@dataclasses.dataclass(frozen=True)
class Loss:
    """Eq. 6: cross-entropy + flops_weight * GMACs per frame of the whole net."""

    flops_loss: str = "real"  # "real" (Eq. 5) or "upper" (savings of the second convolution alone)
    flops_weight: float = 0.0  # lambda
    # The weight is 0 up to the first share of all steps and rises linearly to full at the second:
    # from scratch, a weight applied while accuracy is at chance collapses every policy to skip.
    flops_warmup: tuple[float, float] = (0.0, 0.0)
    label_smoothing: float = 0.0
    # arnet adds uniform_weight * |shares of its actions - 1/actions|. Published, after division by the weight
    # of the cross-entropy: flops_weight 0.0526, uniform_weight 0.158.
    uniform_weight: float = 0.0
    # cgnet adds threshold_weight * sum (threshold - threshold_target)^2 over its gated channels.
    threshold_weight: float = 1e-4
    threshold_target: float = 1.0


@dataclasses.dataclass(frozen=True)
class Train:
    """Length, batch, precision and rhythm of a run."""

    epochs: float = 50.0
    batch_size: int = 64  # clips, over all devices
    accumulate: int = 1  # parts a batch goes through the model in, for 1/accumulate of the memory
    # Clips over which BatchNorm takes its statistics; published: the 16 on each device. 0: all that go
    # through the model together.
    norm_clips: int = 0
    # Moving average of the weights, d * old + (1 - d) * new each step, such as 0.9999; 0: none. Evaluated
    # beside the weights themselves; what a checkpoint is used with.
    ema_decay: float = 0.0
    max_skipped_steps: int = 10  # in a row, for a loss or gradient that isn't finite, before a run stops
    eval_batch_size: int = 64
    eval_every_epochs: float = 1.0
    log_every_steps: int = 20
    eval_sampled: bool = False  # Gumbel noise at evaluation too, as published; else the likeliest actions
    checkpoint_every_steps: int = 0  # besides the checkpoint after each evaluation; 0: none
    seed: int = 0
    # Weights to start from: a file of torch.save, safetensors or npz, or what `adafuse convert` wrote. Policy
    # networks and classifier start anew where these have none that fit.
    init_from: str = ""
    precision: str = "float32"  # "float32" or "bfloat16" (compute; parameters stay float32)
    wandb_project: str = ""  # of Weights & Biases, to log there too (pip install 'adafuse_jax[wandb]')


# Keywords of `create_model`, for the command line; None leaves the model's own default.
_MODEL_OPTIONS = {
    "dropout": float,
    "shift": str,
    "stride_in_1x1": bool,
    "drop_path": float,
    "padding": str,
    "bn_epsilon": float,
    "actions": tuple,
    "tau": float,
    "hidden": int,
    "group_size": int,
    "share_policy": bool,
    "fusion_stages": tuple,
    "detach_history": bool,
    "prior": tuple,
    "prior_strength": float,
    "lstm_hidden": int,
    "hold_cell": bool,
    "num_frames": int,
    "shares": tuple,
    "target_gmacs": float,
    "keep_share": float,
    "partitions": int,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    model: Model = Model()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    loss: Loss = Loss()
    train: Train = Train()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """Builds and checks a config from nested mappings (an `ml_collections.ConfigDict`, or JSON).

        Raises:
            UserError: for an unknown section or field, a value of the wrong type, or one that can't be
                (`config_checks`).
        """
        sections = {f.name: f.default for f in dataclasses.fields(cls)}
        filled = {}
        for name, fields in values.items():
            if name not in sections:
                raise unknown("config section", name, sections)
            if not isinstance(fields, Mapping):
                raise UserError(f"config.{name}: expected fields, found {type(fields).__name__} {fields!r}")
            if name == "model":
                fields = dict(fields)
                options = dict(fields.pop("options", {})) | {
                    k: fields.pop(k) for k in list(fields) if k != "name"
                }
                options = {k: _option(k, v) for k, v in options.items() if v is not None}
                filled[name] = dataclasses.replace(_section(name, Model, fields), options=options)
            else:
                filled[name] = _section(name, type(sections[name]), fields)
        config = cls(**filled)
        config_checks.check(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as `from_dict` takes them; JSON can hold them."""
        return dataclasses.asdict(self)


def base() -> ml_collections.ConfigDict:
    """All fields with their defaults: what every file in configs/ starts from."""
    config = ml_collections.ConfigDict(Config().to_dict())
    config.model = {"name": Config().model.name} | {
        name: config_dict.placeholder(kind) for name, kind in _MODEL_OPTIONS.items()
    }
    return config


def _section(name: str, kind: type, values: Mapping[str, Any]):
    types = {f.name: type(f.default) for f in dataclasses.fields(kind)}
    filled = {}
    for field, value in values.items():
        if field not in types:
            raise unknown(f"config field in {name!r}", field, types)
        filled[field] = _typed(f"config.{name}.{field}", value, types[field])
    return kind(**filled)


def _option(name: str, value: Any) -> Any:
    """A model option; those not on the command line, and unknown ones, are `create_model`'s to check."""
    wanted = _MODEL_OPTIONS.get(name)
    element = str if name == "actions" else float
    return _plain(value) if wanted is None else _typed(f"config.model.{name}", value, wanted, element)


def _typed(where: str, value: Any, wanted: type, element: type = float) -> Any:
    """The value, if it is of the type `wanted`; a tuple's elements are of the type `element`."""
    value = _plain(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, wanted) or isinstance(value, bool) is not (wanted is bool):
        raise UserError(f"{where}: expected {wanted.__name__}, found {type(value).__name__} {value!r}")
    allowed = (int, float) if element is float else element
    if wanted is tuple and not all(isinstance(v, allowed) and not isinstance(v, bool) for v in value):
        kind = "numbers" if element is float else "names"
        raise UserError(f"{where}: expected a tuple of {kind}, found {value!r}")
    return value


def _plain(value: Any) -> Any:
    return tuple(_plain(v) for v in value) if isinstance(value, list | tuple) else value
