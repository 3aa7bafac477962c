"""Training: resumed as if never interrupted, finished once, and stopped in one line by what can't go on."""

import dataclasses
import json
import logging
import os
import shutil
import signal

import chex
import jax
import numpy as np
import pytest
from runs import FUSED, PLAIN, SHAPES, at, config, logged, state_of

from adafuse_jax import weights
from adafuse_jax.config import Config
from adafuse_jax.errors import UserError
from adafuse_jax.train import loop, run
from adafuse_jax.train import state as states
from adafuse_jax.train.checkpoint import FOLDER, read_meta
from adafuse_jax.train.workdir import claim

STEPS = 10  # of the runs of `config`


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted: its workdir and what it returned."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, loop.train(config(), workdir)


def fail():
    raise OSError("disk full")


def test_a_run_writes_what_it_says(whole):
    workdir, result = whole
    names = {"config.json", "run.json", "metrics.jsonl", "events", FOLDER}
    assert {path.name for path in workdir.iterdir()} == names
    assert Config.from_dict(json.loads((workdir / "config.json").read_text())) == config()
    lines = logged(workdir)
    # Every second step, and before each evaluation.
    assert [line["step"] for line in lines if line["split"] == "train"] == [2, 4, 5, 6, 8, 10]
    assert [line["step"] for line in lines if line["split"] == "val"] == [5, 10]
    assert sum(line["clips"] for line in lines if line["split"] == "train") == STEPS * 8  # each step once
    assert {"split": "val", **result} == lines[-1]
    for line in (line for line in lines if line["split"] == "train"):
        parts = line["loss_parts"]
        assert parts.keys() == {"cross_entropy", "efficiency"}
        assert parts["cross_entropy"] == pytest.approx(line["loss"])
        assert line["stages"] == {"stage3": line["sites"]["layer3.0"]}
    (start,) = json.loads((workdir / "run.json").read_text())
    assert start["seed"] == 0
    written = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["speed"] for line in written if line["split"] == "train"]
    assert all(speed["clips_per_s"] > 0 and 0 <= speed["data_wait_share"] <= 1 for speed in speeds)
    assert read_meta(workdir, "latest")["metrics"] == result
    assert result["step"] == STEPS
    assert result["clips"] == 12


def test_an_interrupted_run_ends_as_one_that_was_not(whole, tmp_path):
    # Before the first checkpoint; right after an evaluation; after a checkpoint that came between two logs.
    # Each time with other reading threads.
    for threads, position in ((1, 2), (3, 5), (1, 9)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="disk full"):
            at(patch, position, fail)
            loop.train(config(data={**SHAPES, "threads": threads}), tmp_path)
    assert state_of(tmp_path, config())[2] == 9
    result = loop.train(config(), tmp_path)
    assert result == whole[1]
    assert logged(tmp_path) == logged(whole[0])
    assert len(json.loads((tmp_path / "run.json").read_text())) == 4  # starts
    chex.assert_trees_all_equal(state_of(tmp_path, config()), state_of(whole[0], config()))


def test_a_signal_ends_the_run_after_the_step_under_way(whole, tmp_path):
    for step, number, error in ((4, signal.SIGINT, KeyboardInterrupt), (7, signal.SIGTERM, SystemExit)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(error):
            at(patch, step - 1, lambda number=number: os.kill(os.getpid(), number))
            loop.train(config(), tmp_path)
        assert state_of(tmp_path, config())[2] == step
    assert loop.train(config(), tmp_path) == whole[1]
    chex.assert_trees_all_equal(state_of(tmp_path, config()), state_of(whole[0], config()))
    assert logged(tmp_path) == logged(whole[0])  # not even the log tells


def test_a_signal_stops_an_evaluation_which_is_then_done_first(whole, tmp_path, monkeypatch):
    class Asked(run.Evaluator):
        def __call__(self, params, stats, before_each):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(params, stats, before_each)

    for step in (5, 5, 10):  # the second time it is stopped there again; each later one first finishes it
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
            if step == 10:
                patch.setattr(
                    loop, "Evaluator", lambda *args: first_whole(run.Evaluator(*args), Asked(*args))
                )
            else:
                patch.setattr(loop, "Evaluator", Asked)
            loop.train(config(), tmp_path)
        assert stopped.value.code == 0
        assert state_of(tmp_path, config())[2] == step
        assert read_meta(tmp_path, "latest")["metrics"] is None
    assert loop.train(config(), tmp_path) == whole[1]
    assert logged(tmp_path) == logged(whole[0])
    for which in ("best", "latest"):
        assert read_meta(tmp_path, which)["metrics"] == read_meta(whole[0], which)["metrics"]


def first_whole(*evaluators):
    """Each call by the next of the evaluators."""
    calls = iter(evaluators)
    return lambda *args: next(calls)(*args)


def test_a_finished_run_trains_nothing(whole, tmp_path, monkeypatch, caplog):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    monkeypatch.setattr(loop, "make_train_step", lambda *_: pytest.fail("trains"))
    monkeypatch.setattr(loop, "Evaluator", lambda *_: pytest.fail("evaluates"))
    with caplog.at_level(logging.INFO, logger="adafuse_jax"):
        assert loop.train(config(), workdir) == whole[1]
    assert "this run was finished before" in caplog.text
    assert logged(workdir) == logged(whole[0])
    # What changes no number may differ.
    loop.train(config(log_every_steps=7, data={**SHAPES, "threads": 1, "max_bad_share": 0.5}), workdir)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"seed": 1}, "config.train.seed=0, this one has 1"),
        ({"data": {**SHAPES, "level": "hard"}}, "config.data.level='easy', this one has 'hard'"),
        ({"model": {**FUSED, "tau": 0.5}}, "config.model.tau=None, this one has 0.5"),
        ({"model": PLAIN}, r"config.model.fusion_stages=\[3\], this one has None"),
    ],
)
def test_a_workdir_holds_one_run(whole, changed, message):
    before = {path: path.read_bytes() for path in whole[0].glob("*.json*")}
    with pytest.raises(UserError, match=f"holds a run with {message}: give another --workdir") as error:
        loop.train(config(**changed), whole[0])
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in whole[0].glob("*.json*")} == before


def test_a_run_without_a_checkpoint_may_be_replaced(tmp_path):
    for seed in (0, 1):
        with claim(tmp_path, config(seed=seed)):
            assert json.loads((tmp_path / "config.json").read_text())["train"]["seed"] == seed
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    with (
        pytest.raises(UserError, match=r"config\.train\.seed=1, this one has 0"),
        claim(tmp_path, config()),
    ):
        pytest.fail("claimed")


def test_a_workdir_is_held_by_one_process(tmp_path):
    taken = pytest.raises(UserError, match=r"workdir .*: expected none to train in it, found another process")
    with claim(tmp_path, config()), taken:
        loop.train(config(), tmp_path)
    with claim(tmp_path, config()):  # free again
        pass


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 3}', "\xff"])
def test_a_workdir_whose_config_is_none(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.json: expected the JSON of a config"):
        loop.train(config(), tmp_path)


def test_a_workdir_that_cannot_be_one(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"workdir .*/file: expected a folder to write to, found: File exists"
    ):
        loop.train(config(), tmp_path / "file")


def test_a_checkpoint_of_another_model(whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    (workdir / "config.json").unlink()
    with pytest.raises(
        UserError, match=r"checkpoint .*/10: expected model 'tsn_tiny', found 'adafuse_tsn_tiny'"
    ):
        loop.train(config(PLAIN), workdir)
    (workdir / "config.json").unlink()
    with pytest.raises(UserError, match=r"checkpoint .*/10 is of another model: .*fusion"):
        loop.train(config({**FUSED, "hidden": 32}), workdir)


def test_to_use_a_checkpoint_the_optimiser_does_not_matter(whole):
    values = config(optimizer={"name": "sgd", "clip_norm": 0.0})
    loaded, own = run.load(whole[0], "latest", values), run.load(whole[0], "latest")
    assert (loaded.config, own.config) == (values, config())
    chex.assert_trees_all_equal(loaded.parts.params, own.parts.params)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"batch_size": 12}, "config.train.batch_size: expected a multiple of the 8 devices, found 12"),
        (
            {"eval_batch_size": 4},
            "config.train.eval_batch_size: expected a multiple of the 8 devices, found 4",
        ),
        ({"batch_size": 48}, "expected at most the number of training clips 40, found 48"),
        ({"data": {**SHAPES, "num_classes": 6}}, "config.data.num_classes: moving_shapes has 12, found 6"),
        ({"model": {"name": "adafuse_tsn_tiny_"}}, "unknown model 'adafuse_tsn_tiny_'"),
        (
            {"optimizer": {"warmup_epochs": 2.0}},
            "warmup_epochs: expected less than the run's 2 epochs, found 2",
        ),
    ],
)
def test_what_cannot_be_run_leaves_no_workdir(tmp_path, monkeypatch, changed, message):
    monkeypatch.setattr(loop, "build", lambda *_: pytest.fail("draws weights"))
    with pytest.raises(UserError, match=message):
        loop.train(config(**changed), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_processes_share_each_batch(tmp_path, monkeypatch, idle_step):
    """Two processes, one after the other, train on the two halves of the batches of a single one."""
    put, seen = loop.mesh.put, {}
    monkeypatch.setattr(loop, "Evaluator", lambda *_: lambda *_: {"loss": 1.0, "top1": 0.0, "clips": 12.0})
    for index, count in ((0, 1), (0, 2), (1, 2)):
        read = seen[index, count] = []
        shard = {"shard_index": index, "shard_count": count}
        with monkeypatch.context() as patch:
            patch.setattr(loop.mesh, "processes", lambda shard=shard: shard)
            patch.setattr(loop.mesh, "put", lambda b, m, read=read: read.append(b) or put(b, m))
            loop.train(config(PLAIN), tmp_path / f"{index} of {count}", jax.devices()[:1])
    assert len(seen[0, 1]) == STEPS
    for whole, *halves in zip(seen[0, 1], seen[0, 2], seen[1, 2], strict=True):
        for key in whole:
            np.testing.assert_array_equal(whole[key], np.concatenate([half[key] for half in halves]))


@pytest.mark.parametrize(
    "warmup, best", [((0.0, 0.0), 2), ((0.1, 0.2), 2), ((0.2, 0.5), 6), ((0.0, 1.0), 10)]
)
def test_the_best_checkpoint_is_one_of_the_full_weight(tmp_path, monkeypatch, idle_step, warmup, best):
    top1 = {2: 0.9, 4: 0.8, 6: 0.5, 8: 0.3, 10: 0.4}
    steps = iter(top1.values())

    class Evaluator:
        def __init__(self, *_): ...

        def __call__(self, *_):
            return {"loss": 1.0, "top1": next(steps)}

    monkeypatch.setattr(loop, "Evaluator", Evaluator)
    values = config(PLAIN, eval_every_epochs=0.4, checkpoint_every_steps=0)
    values = dataclasses.replace(values, loss=dataclasses.replace(values.loss, flops_warmup=warmup))
    loop.train(values, tmp_path)
    for which, step in (("best", best), ("latest", 10)):
        found = read_meta(tmp_path, which)
        wanted = {"step": step, "unreadable_train": 0, "loss": 1.0, "top1": top1[step]}
        assert found["metrics"] == wanted
        assert Config.from_dict(found["config"]) == values
        assert found["class_names"][0] == "right"


def test_steps_that_are_not_finite_stop_the_run(tmp_path, caplog):
    # The first step's loss is finite, its weights are useless: no later one's is.
    each = {"checkpoint_every_steps": 1, "log_every_steps": 100, "max_skipped_steps": 2}
    values = config(PLAIN, optimizer={"name": "sgd", "learning_rate": 1e30}, **each)
    for _ in range(2):  # started again, it goes on from the last good step
        with pytest.raises(
            UserError, match=r"^step 4: .* found none in 3 steps in a row .* lower config.opt"
        ):
            loop.train(values, tmp_path)
        state, _, step = state_of(tmp_path, values)
        assert step == 1
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert [r.message for r in caplog.records if "left out" in r.message][:2] == [
        f"step {step} left out: its loss or gradient isn't finite" for step in (2, 3)
    ]


def test_nor_does_a_loss_pass_the_last_evaluation(tmp_path):
    values = config(PLAIN, optimizer={"name": "sgd", "learning_rate": 1e30}, epochs=0.2)
    with pytest.raises(UserError, match=r"^evaluation after step 1: expected a finite loss, found nan"):
        loop.train(values, tmp_path)
    with pytest.raises(UserError, match="found no checkpoint in it"):
        read_meta(tmp_path)


def test_averaged_weights_are_what_a_checkpoint_is_used_with(tmp_path):
    values = config(ema_decay=0.9)
    result = loop.train(values, tmp_path)
    state = state_of(tmp_path, values)[0]
    found = run.load(tmp_path, "latest")
    chex.assert_trees_all_equal((found.parts.params, found.parts.stats), state.ema)
    again = run.evaluate_checkpoint(values, tmp_path, "latest")
    assert again == {name: value for name, value in result.items() if name in again}
    parts = dataclasses.replace(found.parts, params=state.params, stats=state.stats)
    raw = run.Evaluator(values, parts)(state.params, state.stats)
    assert result["raw"] == {name: raw[name] for name in result["raw"]}
    assert raw["loss"] != result["loss"]
    model = weights.load(run.make_model(values), tmp_path)
    chex.assert_trees_all_equal(states.take_apart(model)[1:], state.ema)
