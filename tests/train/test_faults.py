"""Faults of disks, data and devices: one line says what happened, and the same command goes on."""

import contextlib
import logging
import resource
import shutil
from pathlib import Path

import chex
import jax
import pytest
from runs import PLAIN, at, config, logged, state_of

from adafuse_jax.errors import UserError
from adafuse_jax.train import loop
from adafuse_jax.train.checkpoint import FOLDER
from adafuse_jax.train.logs import Logs

VALUES = config(PLAIN)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing befell."""
    workdir = tmp_path_factory.mktemp("whole")
    loop.train(VALUES, workdir)
    return workdir


def assert_goes_on(workdir, whole, values=VALUES):
    loop.train(values, workdir)
    chex.assert_trees_all_equal(state_of(workdir, values), state_of(whole, values))
    assert logged(workdir) == logged(whole)


@contextlib.contextmanager
def files_of_at_most(size):
    """No file grows beyond so many bytes: the system refuses what goes beyond, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def one_line(call, match):
    with pytest.raises(UserError, match=match) as info:
        call()
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("position", [2, 4, 9])  # of the saves after 3, 5 (with an evaluation) and at the end
def test_a_disk_too_full_for_a_checkpoint(whole, tmp_path, position):
    with pytest.MonkeyPatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        at(patch, position, lambda: patch.setattr(shutil, "disk_usage", lambda _: usage))
        one_line(
            lambda: loop.train(VALUES, tmp_path),
            f"^checkpoint in {tmp_path}.*: expected .* bytes free to write it, found 1000; the run goes on",
        )
    kept = sorted(int(p.name) for p in (tmp_path / FOLDER).iterdir() if p.name.isdecimal())
    assert kept[-1:] == {2: [], 4: [3], 9: [9]}[position]
    assert_goes_on(tmp_path, whole)


def test_a_disk_too_full_for_the_log(tmp_path):
    with Logs(tmp_path) as logs:
        logs.write(1, "train", {"loss": 1.0})
        before = logs.path.read_text()
        with files_of_at_most(len(before)):
            for _ in range(30):
                one_line(
                    lambda: logs.write(2, "train", {"loss": 1.0}),
                    "^logs in .*: expected to write to them, found: File too large",
                )
    assert logs.path.read_text() == before


def test_a_disk_too_full_for_the_events(tmp_path):
    """They end no thread that all then wait for."""
    with Logs(tmp_path) as logs:
        (events,) = logs.events.iterdir()
        logs.path.write_text("")  # shorter than they are
        with files_of_at_most(events.stat().st_size + 10):
            for _ in range(30):
                one_line(
                    lambda: logs.write(1, "train", {"loss": 1.0}), "^logs in .*: expected to write to them"
                )


@pytest.mark.parametrize("vanish", ["moved", "deleted"])
def test_a_workdir_that_vanishes(tmp_path, vanish):
    workdir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"

    def gone():
        workdir.rename(elsewhere)
        if vanish == "deleted":
            shutil.rmtree(elsewhere)

    with pytest.MonkeyPatch.context() as patch:
        at(patch, 1, gone)
        one_line(lambda: loop.train(VALUES, workdir), "metrics.jsonl: .* found it moved or deleted")
    assert not [p for p in tmp_path.glob("run/checkpoints/*") if p.name.isdecimal()]  # none to go on from


def test_a_workdir_that_nothing_can_be_written_to():
    one_line(
        lambda: loop.train(VALUES, Path("/proc/run")), "workdir /proc/run: expected a folder to write to"
    )


@pytest.mark.parametrize("damaged", ["state/d/*", "state/manifest.ocdbt", "meta/metadata", "metrics/metrics"])
def test_a_damaged_newest_checkpoint(whole, tmp_path, caplog, damaged):
    workdir = shutil.copytree(whole, tmp_path / "run")
    (file,) = (workdir / FOLDER / "10").glob(damaged)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with caplog.at_level(logging.INFO, logger="adafuse_jax"):
        assert_goes_on(workdir, whole)
    told = [r.message for r in caplog.records]
    assert any("10: expected a complete checkpoint" in m and "set aside as 10.unreadable" in m for m in told)
    assert any(m.startswith("going on from step 9 of 10") for m in told)
    assert (workdir / FOLDER / "10.unreadable").is_dir()


def test_no_checkpoint_that_can_be_read(whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    for file in (workdir / FOLDER).glob("*/state/manifest.ocdbt"):
        file.unlink()
    one_line(
        lambda: loop.train(VALUES, workdir), "expected a complete checkpoint, found one that can't be read"
    )
    assert len(list((workdir / FOLDER).glob("[0-9]*"))) == len(list((whole / FOLDER).glob("[0-9]*")))


def test_a_device_without_memory(tmp_path, monkeypatch):
    def step(*_):  # what an accelerator says (a CPU's memory is the system's, which kills)
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 98765432109 bytes.")

    monkeypatch.setattr(loop, "make_train_step", lambda *_: step)
    one_line(
        lambda: loop.train(VALUES, tmp_path),
        "^out of memory with config.train.batch_size 8: 1 clips at once on each of 8 devices; try "
        "config.train.precision=bfloat16, a smaller batch, or smaller images",
    )
