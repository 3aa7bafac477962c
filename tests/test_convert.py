"""`adafuse convert`, and what converted weights are good for: prediction, evaluation, a start of training."""

import dataclasses
import re
import shutil

import chex
import jax
import numpy as np
import pytest
import runs
from flax import nnx
from helpers import filled

from adafuse_jax import cli, create_model, weights
from adafuse_jax.errors import UserError
from adafuse_jax.train import loop, run
from adafuse_jax.train import state as states
from adafuse_jax.train.checkpoint import FOLDER, Checkpoints
from adafuse_jax.train.optim import make_optimizer

CONFIG = runs.config()
NAMES = [f"class {i}" for i in range(12)]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run's workdir with a checkpoint of a net that was never trained, but has opinions."""
    path = tmp_path_factory.mktemp("run")
    graph, params, stats = states.take_apart(filled(lambda: run.make_model(CONFIG)))
    del graph
    state = states.initial(params, stats, make_optimizer(CONFIG.optimizer, params, 1, 1))
    with Checkpoints(path / FOLDER) as checkpoints:
        checkpoints.save(1, jax.device_put(state), run.meta(CONFIG, NAMES, None), {"position": 1})
    return path


@pytest.fixture(scope="module")
def converted(workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted")
    assert cli.main(["convert", str(workdir), "--out", str(out), "--licence", "MIT"]) == 0
    return out


def test_a_run_converted_is_the_run(workdir, converted):
    before, after = run.load(workdir), run.load(converted)
    for ours, theirs in ((before.parts.params, after.parts.params), (before.parts.stats, after.parts.stats)):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert after.class_names == NAMES
    assert after.config.model == before.config.model
    card = weights.read(converted).card
    assert (card.licence, card.source) == ("MIT", f"{workdir / FOLDER / '1'}, step 1")
    assert run.evaluate_checkpoint(CONFIG, workdir) == run.evaluate_checkpoint(CONFIG, converted) | {
        "step": 1
    }


def test_a_run_is_loaded_as_it_is(workdir):
    wanted = run.load(workdir).parts
    for path in (workdir, workdir / FOLDER):
        model = weights.load(run.make_model(CONFIG), path)
        _, params, stats = states.take_apart(model)
        chex.assert_trees_all_equal((params, stats), (wanted.params, wanted.stats))
    other = create_model("tsn_tiny", num_classes=5)
    with pytest.raises(
        UserError, match=r"fusion\.\S+: expected no such.* fc\.bias: expected \(5,\), found \(12,\)"
    ):
        weights.load(other, workdir)
    weights.load(other, workdir, ("policy", "head"))
    np.testing.assert_array_equal(
        other.backbone.conv1.kernel[...], wanted.params["backbone"]["conv1"]["kernel"]
    )


def test_a_damaged_run_is_one_error(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    for file in (tmp_path / "run" / FOLDER / "1" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match="expected a complete checkpoint, found: ") as error:
        weights.load(run.make_model(CONFIG), tmp_path / "run")
    assert "\n" not in str(error.value)


def test_a_contradicting_config_is_an_error(converted):
    def load(section, **changes):
        changed = dataclasses.replace(getattr(CONFIG, section), **changes)
        return run.load(converted, config=dataclasses.replace(CONFIG, **{section: changed}))

    for changes in (
        {"mean": (0.5,) * 3},
        {"std": (1.0,) * 3},
        {"channel_order": "bgr"},
        {"max_value": 255.0},
    ):
        (name,) = changes
        with pytest.raises(
            UserError, match=rf"config\.data\.{name}: expected .*, as weights .* wants it, found"
        ):
            load("data", **changes)
    with pytest.raises(UserError, match=r"config\.model\.prior=\(0\.2, 0\.3, 0\.5\), as it was trained"):
        load("model", options={"fusion_stages": (3,)})
    with pytest.raises(
        UserError, match="expected 'tsn_tiny' with 12 classes, found 'adafuse_tsn_tiny' with 12"
    ):
        load("model", name="tsn_tiny")


def published(path, classes=1000):
    """The weights of a bare net, as torchvision names them."""
    source = filled(lambda: create_model("tsn_tiny", num_classes=classes), seed=3)
    arrays = {
        key.removeprefix("base_model.").replace("new_fc", "fc"): value
        for key, value in weights.to_torch(source).items()
        if not key.endswith("num_batches_tracked")
    }
    with open(path, "wb") as file:
        np.savez(file, **arrays)
    return source


def test_a_run_starts_from_weights(tmp_path):
    """At a rate that changes nothing, what the last checkpoint holds is what the run started from."""
    source = published(tmp_path / "imagenet.npz")
    config = runs.config(
        optimizer={"learning_rate": 1e-30}, init_from=str(tmp_path / "imagenet.npz"), epochs=0.2
    )
    loop.train(config, tmp_path / "run")
    found = run.load(tmp_path / "run", "latest").parts
    initial = run.build(config).params
    params = nnx.to_pure_dict(nnx.state(source, nnx.Param))
    ours, theirs, anew = found.params["backbone"], params["backbone"], initial["backbone"]
    for name in ("conv1", "bn1", "layer1"):
        chex.assert_trees_all_close(ours[name], theirs[name], rtol=0, atol=1e-20)
    chex.assert_trees_all_close(ours["layer3"][0]["conv2"], theirs["layer3"][0]["conv2"], rtol=0, atol=1e-20)
    # What these weights lack starts anew.
    fusion = anew["layer3"][0]["fusion"]
    chex.assert_trees_all_close(ours["layer3"][0]["fusion"], fusion, rtol=0, atol=1e-20)
    chex.assert_trees_all_close(found.params["fc"], initial["fc"], rtol=0, atol=1e-20)


def test_a_start_that_wants_another_input(tmp_path, converted):
    config = runs.config(data=runs.SHAPES | {"mean": (0.1, 0.1, 0.1)}, init_from=str(converted))
    with pytest.raises(UserError, match=r"config\.data\.mean: expected \(0\.485, .* as weights .* wants it"):
        loop.train(config, tmp_path / "run")


def test_a_dry_run_names_every_array_once(tmp_path, capsys):
    published(tmp_path / "a.npz")
    command = ["convert", str(tmp_path / "a.npz"), "--model", "adafuse_tsn_tiny", "--num_classes", "7"]
    assert cli.main([*command, "--allow_missing", "policy,head", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    filled_ = [re.fullmatch(r"(\S+) -> (\S+) (\(.*\))", line) for line in lines if " -> " in line]
    left = [line.removesuffix(" (left out)") for line in lines if line.endswith("(left out)")]
    assert left == ["fc.weight", "fc.bias"]
    with np.load(tmp_path / "a.npz") as given:
        assert sorted([m[1] for m in filled_] + left) == sorted(given.files)
    model = nnx.eval_shape(lambda: create_model("adafuse_tsn_tiny", num_classes=7))
    shapes = {
        ".".join(map(str, path)): str(v.shape)
        for path, v in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    }
    assert all(shapes[m[2]] == m[3] for m in filled_)
    initial = [line for line in lines if line.startswith("(initial) ")]
    assert len(filled_) + len(initial) == len(lines) - len(left)
    assert len({m[2] for m in filled_}) + len(initial) == len(shapes)


def test_converted_imagenet_weights_know_where_they_come_from(tmp_path):
    published(tmp_path / "a.npz")
    assert (
        cli.main(["convert", str(tmp_path / "a.npz"), "--model", "tsn_tiny", "--out", str(tmp_path / "o")])
        == 0
    )
    card = weights.read(tmp_path / "o").card
    assert (card.model, card.num_classes, card.source) == ("tsn_tiny", 1000, "a.npz")
    assert card.sha256 == weights.card.sha256(tmp_path / "a.npz") and len(card.sha256) == 64
    assert card.data["mean"] == [0.485, 0.456, 0.406]
    assert cli.main(["convert", str(tmp_path / "o"), "--out", str(tmp_path / "p")]) == 0
    assert weights.read(tmp_path / "p").card == card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "tsn_tiny"], "--out: expected a folder, found none"),
        (["--out", "o"], "expected --model with weights without a card, found none"),
        (
            ["--out", "o", "--model", "tsn_tiny", "--option", "shift"],
            "--option: expected NAME=VALUE, found 'shift'",
        ),
        (["--out", "o", "--model", "tsn_tiny", "--option", "shift=x"], "shift: expected one of"),
        (["--out", "o", "--model", "tsn_tiny", "--allow_missing", "x"], "unknown group to be missing 'x'"),
        (["--out", "o", "--model", "tsn_tiny", "--num_classes", "5"], "2 keys don't fit model 'tsn_tiny'"),
        (["--out", "o", "--model", "tsn_r19"], "unknown model 'tsn_r19'"),
        (
            ["--out", "o", "--model", "tsn_tiny", "--class_names", "names"],
            "class names: expected 1000, found 1",
        ),
    ],
)
def test_what_cannot_be_converted(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    published(tmp_path / "a.npz")
    (tmp_path / "names").write_text("one\n")
    assert cli.main(["convert", "a.npz", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_a_folder_of_neither(tmp_path, capsys):
    assert cli.main(["convert", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    assert "expected a run's workdir" in capsys.readouterr().err
