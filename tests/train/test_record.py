"""run.json tells what is true of this machine and this checkout, once for each start."""

import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import jax
import pytest
from runs import config

from adafuse_jax.errors import UserError
from adafuse_jax.train import record


def test_each_start_is_added(tmp_path):
    for seed in (3, 4):
        record.add(tmp_path, config(seed=seed), jax.devices())
    first, second = json.loads((tmp_path / "run.json").read_text())
    assert (first["seed"], second["seed"]) == (3, 4)
    assert shlex.split(first["command"]) == sys.orig_argv
    assert first["folder"] == os.getcwd()
    assert first["devices"] == [f"{jax.device_count()} x cpu"]
    assert first["processes"] == 1
    assert first["versions"]["jax"] == jax.__version__
    assert first["versions"]["flax"] == importlib.metadata.version("flax")
    age = datetime.now(UTC) - datetime.fromisoformat(first["started"])
    assert timedelta(seconds=-1) < age < timedelta(hours=1)
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize("text", ["", "{}", '[{"started"'])
def test_a_file_that_is_none_is_told_of(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json: expected the JSON of a run's starts"):
        record.add(tmp_path, config(), jax.devices())
    assert (tmp_path / "run.json").read_text() == text


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a package in it, and a function that runs git there."""
    if shutil.which("git") is None:
        pytest.skip("no git")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    package = tmp_path / "repository" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")

    def git(*args):
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        done = subprocess.run(["git", *who, *args], cwd=package, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "..")
    git("add", ".")
    git("commit", "-m", "first")
    return package, git


def test_the_revision_and_whether_files_changed(checkout):
    package, git = checkout
    head = git("rev-parse", "HEAD")
    (package / "notes.txt").write_text("git doesn't know it")
    assert record.revision(package) == {"revision": head, "changed": False}
    (package / "__init__.py").write_text("x = 1")
    assert record.revision(package) == {"revision": head, "changed": True}
    git("commit", "-am", "second")
    assert record.revision(package) == {"revision": git("rev-parse", "HEAD"), "changed": False}
    assert record.revision(package)["revision"] != head


def test_a_package_installed_inside_another_checkout_has_none(checkout):
    package, _ = checkout
    installed = package.parent / "venv" / "adafuse_jax"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert record.revision(installed) is None


def test_without_git_there_is_none(checkout, monkeypatch, tmp_path):
    package, _ = checkout
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record.revision(package) is None
    monkeypatch.undo()
    assert record.revision(tmp_path) is None
