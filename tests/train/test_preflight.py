"""What a run needs is checked before anything is built, read or written, each in one line with its field."""

import dataclasses
import os

import jax
import pytest
from runs import FUSED, PLAIN, SHAPES, VIDEOS, config

from adafuse_jax.config import Config, Data
from adafuse_jax.errors import UserError
from adafuse_jax.train import loop, preflight, run


@pytest.fixture(autouse=True)
def nothing_is_built(monkeypatch):
    def fail(*_, **__):
        pytest.fail("went past the checks")

    monkeypatch.setattr(loop, "build", fail)
    monkeypatch.setattr(loop.pipeline, "steps_per_epoch", fail)


def stopped(values, workdir, devices=None):
    """What a run says that doesn't get past its checks."""
    with pytest.raises(UserError) as error:
        loop.train(values, workdir, devices)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def listed(tmp_path):
    """A config's values for a list of clips, with every path there; nothing in them is ever read."""
    for name in ("clips.txt", "names.txt", "pairs.txt", "weights.npz"):
        (tmp_path / name).write_text("")
    (tmp_path / "prepared").mkdir()
    clips = str(tmp_path / "clips.txt")
    return {
        **VIDEOS,
        "train_list": clips,
        "val_list": clips,
        "root": str(tmp_path),
        "class_names": str(tmp_path / "names.txt"),
        "flip": 0.5,
        "flip_labels": str(tmp_path / "pairs.txt"),
        "prepared_dir": str(tmp_path / "prepared"),
    }


PATHS = {
    "train_list": "file",
    "val_list": "file",
    "root": "folder",
    "class_names": "file",
    "flip_labels": "file",
    "prepared_dir": "folder",
}


def test_every_path_of_the_data_is_among_them():
    """A text field of the data is a choice, a template, or a path that is checked here."""
    texts = {field.name for field in dataclasses.fields(Data) if field.type is str}
    assert texts - PATHS.keys() == {"name", "sampling", "channel_order", "level", "frame_template"}


@pytest.mark.parametrize("field", PATHS)
@pytest.mark.parametrize("there", [False, True])
def test_a_path_that_is_not_there_or_of_the_other_kind(listed, tmp_path, field, there):
    kind = PATHS[field]
    if field == "prepared_dir":
        listed["name"] = "prepared"
    wrong = tmp_path / "wrong"
    if there:
        wrong.mkdir() if kind == "file" else wrong.write_text("")
    found = f"a {'folder' if kind == 'file' else 'file'}" if there else "nothing"
    message = stopped(config(PLAIN, listed | {field: str(wrong)}), tmp_path / "run")
    assert message == f"config.data.{field}: expected a {kind}, found {found} at {wrong}"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field, kind", [("train_list", "list of clips"), ("val_list", "list of clips")])
def test_a_list_that_is_not_given(listed, tmp_path, field, kind):
    message = stopped(config(PLAIN, listed | {field: ""}), tmp_path / "run")
    assert message == f"config.data.{field}: expected a {kind}, found nothing"


def test_prepared_data_that_are_not_given(listed, tmp_path):
    message = stopped(config(PLAIN, listed | {"name": "prepared", "prepared_dir": ""}), tmp_path / "run")
    assert message == "config.data.prepared_dir: expected a folder that data.prepare wrote, found nothing"


def test_evaluation_needs_no_training_list(listed, tmp_path):
    gone = str(tmp_path / "gone")
    values = config(PLAIN, listed | {"train_list": gone, "flip_labels": gone})
    with pytest.raises(UserError, match="expected a run's workdir"):
        run.evaluate_checkpoint(values, tmp_path)
    values = config(PLAIN, listed | {"val_list": gone})
    with pytest.raises(UserError, match=r"config\.data\.val_list: expected a file, found nothing at"):
        run.evaluate_checkpoint(values, tmp_path)


def test_weights_to_start_from(tmp_path):
    values = config(init_from=str(tmp_path / "none.npz"))
    expected = f"config.train.init_from: expected a file or folder, found nothing at {tmp_path}/none.npz"
    assert stopped(values, tmp_path / "run") == expected
    # A run that has begun doesn't need them any more.
    (tmp_path / "run" / "checkpoints" / "2").mkdir(parents=True)
    preflight.check(values, tmp_path / "run")


@pytest.mark.parametrize("name", ["file", "file/run", "file/a/b"])
def test_a_workdir_that_cannot_be_one(tmp_path, name):
    (tmp_path / "file").write_text("")
    reason = "File exists" if name == "file" else f"Not a directory: {tmp_path}/file"
    message = stopped(config(), tmp_path / name)
    assert message == f"workdir {tmp_path / name}: expected a folder to write to, found: {reason}"


def test_a_workdir_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write anywhere
    message = stopped(config(), tmp_path / "a" / "run")
    assert message.endswith(f"a folder to write to, found: Permission denied: {tmp_path}")


@pytest.mark.parametrize("field", ["batch_size", "eval_batch_size"])
def test_batches_that_the_devices_cannot_share(tmp_path, field):
    batches = {"batch_size": 10, "eval_batch_size": 10, field: 12}
    message = stopped(config(**batches), tmp_path / "run", jax.devices()[:5])
    assert message == f"config.train.{field}: expected a multiple of the 5 devices, found 12"


@pytest.mark.parametrize(
    "model, message",
    [
        (
            {"name": "adafuse_tsn_tinny"},
            "unknown model 'adafuse_tsn_tinny' (did you mean 'adafuse_tsn_tiny'?)",
        ),
        ({"name": "tsn_tiny", "tau": 1.0}, "config.model: unknown option of 'tsn_tiny' 'tau'; known: "),
        (
            {**FUSED, "taau": 1.0},
            "config.model: unknown option of 'adafuse_tsn_tiny' 'taau' (did you mean 'tau",
        ),
        ({**FUSED, "tau": 0.0}, "config.model.tau: expected more than 0, found 0.0"),
        ({**FUSED, "dropout": 1.0}, "config.model.dropout: expected a rate in [0, 1), found 1.0"),
        (
            {**FUSED, "actions": ("keep", "skipp")},
            "config.model: unknown action 'skipp' (did you mean 'skip'?)",
        ),
        ({**FUSED, "actions": ("keep", "keep")}, "config.model.actions: expected some of ('skip', "),
        ({**FUSED, "prior": (0.5, 0.6, 0.1)}, "config.model.prior: expected one share per action ('skip', "),
        ({**FUSED, "prior": (0.5, 0.5)}, "config.model.prior: expected one share per action ('skip', "),
        ({**FUSED, "fusion_stages": (4,)}, "config.model.fusion_stages: expected stages of 1..3 of "),
        ({**FUSED, "group_size": 5}, "config.model.group_size: expected a divisor of the 64 channels"),
        ({**FUSED, "hidden": 0}, "config.model.hidden: expected more than 0, found 0"),
        ({**FUSED, "shift": "tms"}, "config.model.shift: expected one of "),
        ({"name": "threshold_tiny", "keep_share": 0.0}, "config.model.keep_share: expected more than 0"),
        ({"name": "random_tiny", "shares": (0.5, 0.1, 0.1)}, "config.model.shares: expected one per action"),
        ({"name": "random_tiny", "target_gmacs": 99.0}, "config.model.target_gmacs: expected "),
        ({"name": "cgnet_tiny", "partitions": 5}, "config.model.partitions: expected "),
        (
            {"name": "trn_tiny", "num_frames": 4},
            "config.model.num_frames: expected config.data.num_frames 2, found 4",
        ),
        ({"name": "tsn_b0", "padding": "valid"}, "config.model.padding: expected one of "),
        (
            {"name": "tsn_b0", "drop_path": -0.1},
            "config.model.drop_path: expected a rate in [0, 1), found -0.1",
        ),
        ({"name": "tsn_b0", "bn_epsilon": 0.0}, "config.model.bn_epsilon: expected more than 0, found 0.0"),
        ({"name": "lstm_tiny", "lstm_hidden": 0}, "config.model.lstm_hidden: expected more than 0, found 0"),
    ],
)
def test_a_model_that_cannot_be(tmp_path, model, message):
    assert stopped(config(model), tmp_path / "run").startswith(message)


@pytest.mark.parametrize("size, fits", [(223, True), (230, True), (222, False), (240, False), (30, False)])
def test_an_image_size_that_the_model_cannot_take(size, fits):
    """BN-Inception's: 32 n - 1 to 32 n + 6."""
    data = SHAPES | {"image_size": size}
    values = Config.from_dict({"model": {"name": "adafuse_tsn_inc"}, "data": data})
    if fits:
        preflight.check_model(values)
        return
    with pytest.raises(
        UserError, match=rf"^config\.data\.image_size: expected sides of 32 n.*{size} x {size}"
    ):
        preflight.check_model(values)
