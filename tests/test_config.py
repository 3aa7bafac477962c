"""Configs: every file makes one, what goes out comes back, and what can't be is told in one line."""

import dataclasses
import json
import math
import operator
import runpy
from pathlib import Path

import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from adafuse_jax import config as cfg
from adafuse_jax.config import Config
from adafuse_jax.errors import UserError, unknown
from adafuse_jax.models import zoo
from adafuse_jax.train.run import make_model

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FILES = sorted(path for path in CONFIGS.glob("*.py") if path.stem != "common")
FIELDS = [
    f"{section.name}.{field.name}"
    for section in dataclasses.fields(Config)
    for field in dataclasses.fields(section.default)
    if field.name != "options"
]


def values_of(path):
    return runpy.run_path(str(path))["get_config"]()


def changed(name, value):
    """The default config with one field set, as on the command line."""
    section, field = name.split(".")
    values = Config().to_dict()
    values[section][field] = value
    return Config.from_dict(values)


def assert_survives(config):
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_makes_a_config_and_survives_json(path):
    values = values_of(path)
    config = Config.from_dict(values.to_dict())
    assert_survives(config)
    assert config.model.name in zoo.list_models()
    for name in FIELDS:
        if not name.startswith("model."):
            assert operator.attrgetter(name)(values) == operator.attrgetter(name)(config), name
    options = {k: v for k, v in values.model.to_dict().items() if k != "name" and v is not None}
    assert config.model.options == options
    model = nnx.eval_shape(lambda: make_model(config))
    assert (model.name, model.num_classes) == (config.model.name, config.data.num_classes)


def test_arid_of_another_model_differs_in_the_policies_alone():
    """As `--config=configs/arid_r50.py:tsn_r50` asks for it."""
    get_config = runpy.run_path(str(CONFIGS / "arid_r50.py"))["get_config"]
    ours, theirs = (Config.from_dict(get_config(*name).to_dict()) for name in ((), ("tsn_r50",)))
    assert (ours.model.name, theirs.model.name) == ("adafuse_tsn_r50", "tsn_r50")
    assert theirs.model.options == {"stride_in_1x1": True}
    assert theirs.loss == cfg.Loss()
    assert theirs == dataclasses.replace(ours, model=theirs.model, loss=theirs.loss)


def test_the_published_config_is_the_papers():
    """reference.md, section 3, and Table 4 of the paper for Something-Something V2."""
    config = Config.from_dict(values_of(CONFIGS / "sthv2_r50.py").to_dict())
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.momentum) == ("sgd", 0.02, 0.9)
    assert (optimizer.weight_decay, optimizer.clip_norm, optimizer.bias_lr_multiplier) == (5e-4, 20.0, 2.0)
    assert (optimizer.schedule, optimizer.decay_epochs, optimizer.decay_factor) == ("step", (20.0, 40.0), 0.1)
    assert (config.train.epochs, config.train.batch_size) == (50.0, 64)
    assert (config.loss.flops_loss, config.loss.flops_weight) == ("real", 0.075)
    data = config.data
    assert (data.num_classes, data.num_frames, data.image_size, data.resize) == (174, 8, 224, 256)
    assert (data.flip, data.scales) == (0.0, (1.0, 0.875, 0.75, 0.66))


def test_the_base_holds_every_field_and_every_option():
    base = cfg.base().to_dict()
    assert Config.from_dict(base) == Config()
    names = {f"{section}.{field}" for section, fields in base.items() for field in fields}
    options = {f"model.{name}" for name in cfg._MODEL_OPTIONS}
    assert names == set(FIELDS) | options
    # `dtype` is set by train.precision.
    tables = (*zoo._FAMILIES.values(), *zoo._BACKBONES.values())
    known = {"dropout"}.union(*(row.options for row in tables))
    assert set(cfg._MODEL_OPTIONS) == known


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "dropout": st.floats(0, 0.9),
            "actions": st.lists(st.sampled_from(["skip", "reuse", "keep"])),
            "fusion_stages": st.lists(st.integers(1, 4)),
            "hidden": st.integers(1, 4096),
            "share_policy": st.booleans(),
            "shift": st.sampled_from(["tsm", "online"]),
        },
    )
)
def test_options_survive_json(options):
    config = Config.from_dict({"model": {"name": "adafuse_tsn_r18", **options}})
    assert_survives(config)
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in config.model.options.items()} == options


def test_an_option_of_none_is_the_models_own_default():
    assert Config.from_dict({"model": {"name": "tsn_r18", "tau": None}}).model.options == {}


def test_options_are_model_fields_or_stand_together():
    flat = {"model": {"name": "tsn_r18", "dropout": 0.1}}
    nested = {"model": {"name": "tsn_r18", "options": {"dropout": 0.1}}}
    assert Config.from_dict(flat) == Config.from_dict(nested)


def test_integers_are_numbers_and_lists_are_tuples():
    assert changed("optimizer.learning_rate", 1).optimizer.learning_rate == 1.0
    assert changed("data.scales", [1, 0.5]).data.scales == (1, 0.5)


# For each field a value of its type that can't be; None where any value of the type can: paths, which
# `train.preflight` checks, yes or no, and names of other services. A new field must be put here.
WRONG = {
    "model.name": None,  # known to the zoo, see tests/train/test_preflight.py
    "data.name": "video-list",
    "data.num_classes": 0,
    "data.num_frames": 0,
    "data.image_size": 0,
    "data.resize": 0,
    "data.sampling": "sparse",
    "data.test_clips": 0,
    "data.test_crops": 2,
    "data.channel_order": "bgra",
    "data.max_value": 0.0,
    "data.mean": (0.5,),
    "data.std": (1, 0, 1),
    "data.train_list": None,
    "data.val_list": None,
    "data.root": None,
    "data.class_names": None,
    "data.frame_template": "img.jpg",
    "data.flip": 1.5,
    "data.flip_labels": "pairs.txt",  # without flip
    "data.scales": (1.0, 1.5),
    "data.colour_jitter": (0, 0, 0, 0.6),
    "data.max_bad_share": -0.1,
    "data.prepared_dir": None,
    "data.level": "eazy",
    "data.train_clips": 0,
    "data.val_clips": 0,
    "data.threads": 0,
    "optimizer.name": "adam",
    "optimizer.learning_rate": 0.0,
    "optimizer.momentum": 1.0,
    "optimizer.weight_decay": -1e-4,
    "optimizer.bias_lr_multiplier": -1.0,
    "optimizer.clip_norm": -1.0,
    "optimizer.schedule": "cos",
    "optimizer.decay_epochs": (40, 20),
    "optimizer.decay_factor": 0.0,
    "optimizer.warmup_epochs": -1.0,
    "loss.flops_loss": "lower",
    "loss.flops_weight": -1.0,
    "loss.flops_warmup": (0.6, 0.4),
    "loss.label_smoothing": 7.0,
    "loss.uniform_weight": -1.0,
    "loss.threshold_weight": -1.0,
    "loss.threshold_target": math.nan,
    "train.epochs": 0.0,
    "train.batch_size": -8,
    "train.eval_batch_size": 0,
    "train.eval_every_epochs": 0.0,
    "train.log_every_steps": 0,
    "train.eval_sampled": None,
    "train.checkpoint_every_steps": -1,
    "train.seed": -1,
    "train.init_from": None,
    "train.precision": "float16",
    "train.accumulate": 3,
    "train.norm_clips": 5,
    "train.ema_decay": 1.0,
    "train.max_skipped_steps": -1,
    "train.wandb_project": None,
}


def refused(name, value):
    """What is said of a value, in one line."""
    with pytest.raises(UserError) as error:
        changed(name, value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_field_is_checked():
    assert set(FIELDS) == WRONG.keys()


@pytest.mark.parametrize("name", [name for name, value in WRONG.items() if value is not None])
def test_a_value_that_cannot_be_is_told_with_its_field_and_what_is_expected(name):
    message, value = refused(name, WRONG[name]), WRONG[name]
    choice = f"unknown value of config.{name} {value!r}" in message and "known: " in message
    assert choice or (message.startswith(f"config.{name}: expected ") and ", found " in message)


@pytest.mark.parametrize("name", [*FIELDS, *(f"model.{name}" for name in cfg._MODEL_OPTIONS)])
def test_a_value_of_another_type_is_told_with_its_field_and_both_types(name):
    section, field = name.split(".")
    wanted = cfg._MODEL_OPTIONS.get(field) or type(getattr(getattr(Config(), section), field))
    for value in ("1", 1.5, True, (), {}):
        if type(value) is not wanted:
            message = refused(name, value)
            assert (
                message
                == f"config.{name}: expected {wanted.__name__}, found {type(value).__name__} {value!r}"
            )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "name", [name for name in FIELDS if type(operator.attrgetter(name)(Config())) is float]
)
def test_numbers_are_finite(name, value):
    assert refused(name, value).startswith(f"config.{name}: expected ")


@pytest.mark.parametrize(
    "name, value",
    [
        ("data.mean", (0, math.nan, 0)),
        ("optimizer.decay_epochs", (20, math.inf)),
        ("model.prior", (math.nan,)),
    ],
)
def test_numbers_in_a_row_are_finite(name, value):
    assert refused(name, value) == f"config.{name}: expected finite numbers, found {value}"


@pytest.mark.parametrize(
    "name, value, message",
    [
        # Types of what a tuple holds.
        ("data.mean", ("a", 0, 0), "config.data.mean: expected a tuple of numbers, found ('a', 0, 0)"),
        ("loss.flops_warmup", (0, "a"), "config.loss.flops_warmup: expected a tuple of numbers"),
        ("model.prior", ("a",), "config.model.prior: expected a tuple of numbers, found ('a',)"),
        ("model.actions", (1, 2), "config.model.actions: expected a tuple of names, found (1, 2)"),
        # The nearest name.
        (
            "data.name",
            "video-list",
            "unknown value of config.data.name 'video-list' (did you mean 'video_list'?)",
        ),
        ("data.sampling", "sparse", "unknown value of config.data.sampling 'sparse'; known: dense, uniform"),
        ("data.level", "eazy", "(did you mean 'easy'?); known: easy, hard, medium"),
        ("optimizer.name", "adam", "unknown value of config.optimizer.name 'adam' (did you mean 'adamw'?)"),
        ("data.train_lst", "x", "unknown config field in 'data' 'train_lst' (did you mean 'train_list'?)"),
        # Ranges, more than one way out of them.
        ("data.num_frames", 0, "config.data.num_frames: expected more than 0, found 0"),
        ("data.std", (1, 1), "config.data.std: expected 3 numbers, one a colour, found (1, 1)"),
        ("data.scales", (), "config.data.scales: expected shares of the short side, each more than 0 and"),
        (
            "data.scales",
            (1, 0),
            "config.data.scales: expected shares of the short side, each more than 0 and",
        ),
        (
            "data.colour_jitter",
            (0.4, 0.4),
            "expected 3 strengths of 0 to 1 and one of 0 to 0.5, found (0.4, 0.4)",
        ),
        ("data.colour_jitter", (0, -0.1, 0, 0), "config.data.colour_jitter: expected 3 strengths of 0 to 1"),
        ("data.frame_template", "{:05d}{}", "config.data.frame_template: expected a place for the frame's"),
        ("data.frame_template", "{:05q}", "config.data.frame_template: expected a place for the frame's"),
        ("data.frame_template", "{frame}", "config.data.frame_template: expected a place for the frame's"),
        ("optimizer.decay_epochs", (20, 20), "config.optimizer.decay_epochs: expected rising epochs"),
        ("optimizer.decay_epochs", (0, 20), "config.optimizer.decay_epochs: expected rising epochs"),
        ("train.seed", 2**32, "config.train.seed: expected 0 or more and less than 2**32"),
        ("loss.flops_warmup", (0.4,), "config.loss.flops_warmup: expected two rising shares"),
        ("loss.flops_warmup", (0.4, 1.1), "config.loss.flops_warmup: expected two rising shares"),
        # One field against another.
        ("data.resize", 200, "config.data.resize: expected at least image_size 224, found 200"),
        ("data.flip_labels", "x", "config.data.flip_labels: expected config.data.flip above 0 with it"),
        (
            "optimizer.warmup_epochs",
            50,
            "config.optimizer.warmup_epochs: expected less than the run's 50 epochs, found 50",
        ),
        (
            "optimizer.warmup_epochs",
            25,
            "config.optimizer.decay_epochs: expected none before the end of the warm-up after 25",
        ),
    ],
)
def test_what_cannot_be_is_one_line(name, value, message):
    assert message in refused(name, value)


def test_an_unknown_section():
    with pytest.raises(UserError, match=r"unknown config section 'lost' \(did you mean 'loss'\?\)"):
        Config.from_dict({"lost": {}})


def test_a_section_that_is_none():
    with pytest.raises(UserError, match=r"^config\.data: expected fields, found int 3$"):
        Config.from_dict({"data": 3})


def test_without_decay_there_is_no_warm_up_too_long_for_it():
    assert changed("optimizer.decay_epochs", ()).optimizer.decay_epochs == ()
    values = {"schedule": "cosine", "warmup_epochs": 25.0}
    assert Config.from_dict({"optimizer": values}).optimizer.warmup_epochs == 25


def test_shapes_are_drawn_at_their_size_and_need_no_resizing():
    data = {"name": "moving_shapes", "num_classes": 12, "image_size": 300, "resize": 256}
    assert Config.from_dict({"data": data}).data.image_size == 300


@pytest.mark.parametrize(
    "name, value",
    [
        ("sampling", "dense"),
        ("test_clips", 2),
        ("test_crops", 3),
        ("flip", 0.5),
        ("colour_jitter", (0.1, 0.0, 0.0, 0.0)),
        ("num_frames", 1),
        ("image_size", 15),
        *((name, "there") for name in ("train_list", "val_list", "root", "class_names", "prepared_dir")),
    ],
)
def test_shapes_are_drawn_as_they_are_used(name, value):
    with pytest.raises(UserError, match=rf"config\.data\.{name}: expected .* with moving_shapes, found"):
        Config.from_dict({"data": {"name": "moving_shapes", name: value}})


def test_unknown_suggests_only_what_is_near():
    assert str(unknown("colour", "blu", ["red", "blue"])) == (
        "unknown colour 'blu' (did you mean 'blue'?); known: blue, red"
    )
    assert str(unknown("colour", "xyz", ["red", "blue"])) == "unknown colour 'xyz'; known: blue, red"
