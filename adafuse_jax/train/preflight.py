"""Checks of a run that cost next to nothing, before a weight is drawn, a clip read or a step compiled.

What a config tells by itself was checked when it was made (`config_checks`). What lists and other files hold
is checked when they are read, which still comes before the model.
"""

import errno
import os
from pathlib import Path

import jax
from flax import nnx

from adafuse_jax.config import Config
from adafuse_jax.errors import UserError
from adafuse_jax.input import paths
from adafuse_jax.models.zoo import options_of
from adafuse_jax.train import mesh, tracker
from adafuse_jax.train.checkpoint import FOLDER, holds_checkpoint
from adafuse_jax.train.run import make_model


def check(config: Config, workdir: Path, devices: list[jax.Device] | None = None) -> None:
    """Checks all that a run needs: devices, files, the workdir, packages, the model.

    Args:
        config: of the run.
        workdir: of the run.
        devices: to train on; None: all.

    Raises:
        UserError: naming the first thing that isn't as it must be.
    """
    grid = mesh.make(devices)
    mesh.check_batch("config.train.batch_size", config.train.batch_size, grid, config.train.accumulate)
    mesh.check_batch("config.train.eval_batch_size", config.train.eval_batch_size, grid)
    paths.check(config.data, ("train", "val"))
    if not holds_checkpoint(workdir / FOLDER):  # a run that goes on has its weights
        paths.readable("config.train.init_from", config.train.init_from, "file or folder")
    check_workdir(workdir)
    if config.train.wandb_project:
        tracker.package()
    check_model(config)


def check_workdir(workdir: Path) -> None:
    """Raises UserError where a workdir can't be made or written to; makes nothing."""
    workdir = workdir.absolute()
    nearest = next(path for path in (workdir, *workdir.parents) if path.exists())
    reason = None
    if not nearest.is_dir():
        reason = errno.EEXIST if nearest == workdir else errno.ENOTDIR
    elif not os.access(nearest, os.W_OK | os.X_OK):
        reason = errno.EACCES
    if reason is not None:
        raise UserError(
            f"workdir {workdir}: expected a folder to write to, found: {os.strerror(reason)}"
            + (f": {nearest}" if nearest != workdir else "")
        )


def check_model(config: Config) -> None:
    """Builds the model's shapes without its weights.

    Raises:
        UserError: for an unknown model, options that it doesn't know or that can't be, and frames of a
            number or size that it can't take.
    """
    data, options = config.data, config.model.options
    known = options_of(config.model.name)
    if "num_frames" in known and options.get("num_frames", data.num_frames) != data.num_frames:
        raise UserError(
            f"config.model.num_frames: expected config.data.num_frames {data.num_frames}, found "
            f"{options['num_frames']}"
        )
    try:
        model = nnx.eval_shape(lambda: make_model(config))
    except UserError as error:
        message = str(error)
        # Options are named as `create_model` knows them.
        dot = "." if message.partition(":")[0] in known else ": "
        raise UserError(f"config.model{dot}{message}") from error
    try:
        model.count((data.image_size, data.image_size))
    except UserError as error:
        expected = str(error).partition(": ")[2]
        raise UserError(f"config.data.image_size: {expected}") from error
