"""A run killed again and again ends as one that wasn't: parameters, optimiser, data, log, bit for bit."""

import json
import random
import re
import signal
import time

import chex
import pytest
from helpers import start_main
from runs import logged, state_of

from adafuse_jax.config import Config
from adafuse_jax.train.checkpoint import FOLDER, read_meta

# Saved after each step, evaluated after every fifth.
RUN = (
    *(
        "--config=configs/moving_shapes.py",
        "--config.model.fusion_stages=(3,)",
        "--config.data.image_size=16",
    ),
    *("--config.data.num_frames=2", "--config.data.train_clips=40", "--config.data.val_clips=8"),
    *("--config.train.batch_size=8", "--config.train.eval_batch_size=8", "--config.train.log_every_steps=3"),
    *("--config.train.eval_every_epochs=1", "--config.train.checkpoint_every_steps=1"),
    "--config.train.ema_decay=0.99",
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts the run of so many epochs in a workdir, on two devices."""
    compiled = tmp_path_factory.mktemp("compiled")

    def start(workdir, epochs):
        options = f"--config.train.epochs={epochs}", f"--workdir={workdir}"
        return start_main(*RUN, *options, devices=2, compiled=compiled)

    return start


def finish(process):
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err


def steps(workdir):
    """Steps that the run has whole checkpoints of."""
    return sorted(int(p.name) for p in (workdir / FOLDER).glob("*") if p.name.isdecimal())


def kill_somewhere(process, workdir, rng):
    """Kills the run: anywhere from its start on, or in the middle of writing a checkpoint."""
    before = steps(workdir)
    writing = rng.random() < 0.4
    if not writing and rng.random() < 0.2:
        time.sleep(rng.uniform(0, 6))  # while it imports, builds, restores, compiles
    else:
        while process.poll() is None and steps(workdir)[-1:] <= before[-1:]:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.6))
        while (
            writing
            and process.poll() is None
            and not list((workdir / FOLDER).glob("*.orbax-checkpoint-tmp*"))
        ):
            time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return writing and bool(list((workdir / FOLDER).glob("*.orbax-checkpoint-tmp*")))


@pytest.mark.parametrize("kills, epochs", [(3, 6), pytest.param(20, 40, marks=pytest.mark.slow)])
def test_killed_again_and_again(start, tmp_path, kills, epochs):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole, epochs))
    rng, torn = random.Random(0), 0
    for _ in range(kills):
        process = start(killed, epochs)
        torn += kill_somewhere(process, killed, rng)
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    assert torn > 0  # at least one was killed while it wrote a checkpoint
    process, before = start(killed, epochs), steps(killed)
    while steps(killed)[-1:] <= before[-1:]:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert re.search(r"^SIGTERM: saved after step \d+ of", err, re.MULTILINE)
    finish(start(killed, epochs))
    values = Config.from_dict(json.loads((whole / "config.json").read_text()))
    chex.assert_trees_all_equal(state_of(killed, values), state_of(whole, values))
    assert logged(killed) == logged(whole)
    assert steps(killed) == steps(whole)
    for which in ("best", "latest"):
        assert read_meta(killed, which) == read_meta(whole, which)
