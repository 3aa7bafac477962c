"""The folder of a run: held by one job, for one config."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adafuse_jax.config import Config
from adafuse_jax.errors import UserError
from adafuse_jax.train import hosts
from adafuse_jax.train.checkpoint import FOLDER, holds_checkpoint

CONFIG_FILE = "config.json"
# What may differ when a run goes on: it changes neither the numbers nor the order of the data.
_FREE = {
    *("data.threads", "data.max_bad_share"),
    *("train.log_every_steps", "train.checkpoint_every_steps", "train.wandb_project"),
    "train.max_skipped_steps",
}


@contextlib.contextmanager
def claim(workdir: Path, config: Config) -> Iterator[None]:
    """Holds the workdir for this run alone, and writes its config there or checks that it has the same one.

    A run that never got to a checkpoint is lost anyway, so another may take its place.

    Raises:
        UserError: naming the first setting that differs from the run that the workdir holds, for a workdir
            that another process is training in, or one that can't be written to.
    """
    path = workdir / CONFIG_FILE
    # Through JSON, so that tuples compare as the lists they are read back as.
    wanted = json.loads(json.dumps(config.to_dict()))
    lock = None
    try:
        if path.exists():
            _check_same(workdir, wanted, path.read_bytes())
        hosts.wait("configs compared")  # before one of the processes writes its own
        if hosts.writes():
            workdir.mkdir(parents=True, exist_ok=True)
            lock = _lock(workdir)
            fresh = path.with_suffix(".tmp")
            fresh.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
            os.replace(fresh, path)
    except OSError as error:
        raise UserError(
            f"workdir {workdir}: expected a folder to write to, found: {error.strerror}"
        ) from error
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _lock(workdir: Path) -> int:
    """Holds the folder until the descriptor is closed, or the process ends in whatever way."""
    lock = os.open(workdir, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(f"workdir {workdir}: expected none to train in it, found another process") from None
    except OSError:  # a file system without locks: nothing to hold on to
        pass
    return lock


def _check_same(workdir: Path, wanted: dict[str, Any], found: bytes) -> None:
    try:
        ours, theirs = _flat(wanted), _flat(json.loads(found))
        # A field that came with a later version was as it is by default.
        theirs = _flat(json.loads(json.dumps(Config().to_dict()))) | theirs
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            f"{workdir / CONFIG_FILE}: expected the JSON of a config, found something else"
        ) from None
    if not holds_checkpoint(workdir / FOLDER):
        return
    for name in sorted((ours.keys() | theirs.keys()) - _FREE):
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"workdir {workdir} holds a run with config.{name}={theirs.get(name)!r}, this one has "
                f"{ours.get(name)!r}: give another --workdir, or the same settings to go on with it"
            )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """{"section.field": value}; a model's options by their names on the command line."""
    options = {f"model.{name}": value for name, value in config["model"].get("options", {}).items()}
    fields = {f"{s}.{name}": value for s, section in config.items() for name, value in section.items()}
    fields.pop("model.options", None)
    return fields | options
