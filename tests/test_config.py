"""Configs: every file makes one, what goes out comes back, and what can't be is told in one line."""

import dataclasses
import json
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


@pytest.mark.parametrize(
    "name, value, message",
    [
        # Types.
        ("train.epochs", "3", "config.train.epochs: expected float, found str '3'"),
        ("train.batch_size", 8.5, "config.train.batch_size: expected int, found float 8.5"),
        ("train.batch_size", True, "config.train.batch_size: expected int, found bool True"),
        ("train.eval_sampled", 1, "config.train.eval_sampled: expected bool, found int 1"),
        ("optimizer.learning_rate", True, "config.optimizer.learning_rate: expected float, found bool True"),
        ("data.mean", 0.5, "config.data.mean: expected tuple, found float 0.5"),
        ("data.mean", ("a", 0, 0), "config.data.mean: expected a tuple of numbers, found ('a', 0, 0)"),
        ("loss.flops_warmup", (0, "a"), "config.loss.flops_warmup: expected a tuple of numbers"),
        ("model.name", 3, "config.model.name: expected str, found int 3"),
        ("model.tau", "hot", "config.model.tau: expected float, found str 'hot'"),
        ("model.prior", ("a",), "config.model.prior: expected a tuple of numbers, found ('a',)"),
        ("model.actions", (1, 2), "config.model.actions: expected a tuple of names, found (1, 2)"),
        ("model.share_policy", 1, "config.model.share_policy: expected bool, found int 1"),
        # Choices.
        (
            "data.name",
            "video-list",
            "unknown value of config.data.name 'video-list' (did you mean 'video_list'?)",
        ),
        ("data.sampling", "sparse", "unknown value of config.data.sampling 'sparse'; known: dense, uniform"),
        (
            "data.channel_order",
            "bgra",
            "unknown value of config.data.channel_order 'bgra' (did you mean 'bgr'?)",
        ),
        ("data.level", "eazy", "(did you mean 'easy'?); known: easy, hard, medium"),
        ("optimizer.name", "adam", "unknown value of config.optimizer.name 'adam' (did you mean 'adamw'?)"),
        ("optimizer.schedule", "cos", "unknown value of config.optimizer.schedule 'cos'"),
        ("loss.flops_loss", "lower", "known: real, upper"),
        ("train.precision", "float16", "known: bfloat16, float32"),
        # Ranges.
        ("data.num_frames", 0, "config.data.num_frames: expected more than 0, found 0"),
        ("data.num_classes", 0, "config.data.num_classes: expected more than 0"),
        ("train.batch_size", -8, "config.train.batch_size: expected more than 0, found -8"),
        ("train.epochs", 0.0, "config.train.epochs: expected more than 0"),
        (
            "optimizer.learning_rate",
            float("nan"),
            "config.optimizer.learning_rate: expected more than 0, found nan",
        ),
        ("optimizer.weight_decay", -1e-4, "config.optimizer.weight_decay: expected 0 or more, found -0.0001"),
        ("train.checkpoint_every_steps", -1, "config.train.checkpoint_every_steps: expected 0 or more"),
        ("data.flip", 1.5, "config.data.flip: expected 0 to 1, found 1.5"),
        ("data.max_bad_share", -0.1, "config.data.max_bad_share: expected 0 to 1"),
        ("loss.label_smoothing", 7.0, "config.loss.label_smoothing: expected 0 to 1, found 7.0"),
        ("data.mean", (0.5,), "config.data.mean: expected 3 numbers, one a colour, found (0.5,)"),
        ("data.std", (1, 0, 1), "config.data.std: expected more than 0 for each colour, found (1, 0, 1)"),
        ("data.max_value", 0.0, "config.data.max_value: expected more than 0, found 0.0"),
        ("data.test_clips", 0, "config.data.test_clips: expected more than 0, found 0"),
        ("data.test_crops", 2, "config.data.test_crops: expected 1 or 3, found 2"),
        (
            "data.colour_jitter",
            (0.4, 0.4),
            "expected 3 strengths of 0 to 1 and one of 0 to 0.5, found (0.4, 0.4)",
        ),
        ("data.colour_jitter", (0, 0, 0, 0.6), "config.data.colour_jitter: expected 3 strengths of 0 to 1"),
        ("data.colour_jitter", (0, -0.1, 0, 0), "config.data.colour_jitter: expected 3 strengths of 0 to 1"),
        (
            "data.flip_labels",
            "pairs.txt",
            "config.data.flip_labels: expected config.data.flip above 0 with it",
        ),
        ("train.seed", -1, "config.train.seed: expected 0 or more and less than 2**32, found -1"),
        ("train.seed", 2**32, "config.train.seed: expected 0 or more and less than 2**32"),
        ("loss.flops_warmup", (0.6, 0.4), "config.loss.flops_warmup: expected two rising shares"),
        ("loss.flops_warmup", (0.4,), "config.loss.flops_warmup: expected two rising shares"),
        ("loss.flops_warmup", (0.4, 1.1), "config.loss.flops_warmup: expected two rising shares"),
        # The image smaller than the crop.
        ("data.resize", 200, "config.data.resize: expected at least image_size 224, found 200"),
        # Names.
        ("data.train_lst", "x", "unknown config field in 'data' 'train_lst' (did you mean 'train_list'?)"),
    ],
)
def test_what_cannot_be_is_one_line(name, value, message):
    with pytest.raises(UserError) as error:
        changed(name, value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_section():
    with pytest.raises(UserError, match=r"unknown config section 'lost' \(did you mean 'loss'\?\)"):
        Config.from_dict({"lost": {}})


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
