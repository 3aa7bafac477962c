"""Checkpoints of a run: the latest two and the best, written by Orbax in the background, whole or absent.

Of several processes all call alike; Orbax lets each array be written once.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from adafuse_jax.errors import UserError
from adafuse_jax.train import hosts, storage

FOLDER = "checkpoints"  # inside a run's workdir; holds a folder a step

Which = Literal["best", "latest"]


class Restored(NamedTuple):
    """A checkpoint read back.

    Attributes:
        step: steps done.
        state: pytree of arrays.
        meta: what was saved with it (`Checkpoints.save`).
        data: position in the data.
    """

    step: int
    state: Any
    meta: dict[str, Any]
    data: Any


class Checkpoints:
    """The checkpoints in a folder: the latest two, and the best by top-1; older ones are deleted.

    Of equal top-1 the later counts as best; a checkpoint without top-1 counts as worse than any with one.
    A checkpoint is written in the background to a temporary folder that is renamed when complete.

    Args:
        directory: the folder of the checkpoints, made where missing; to read, also the workdir around it.
        write: False to read only: nothing is made or cleaned up, another process may be writing. To write,
            checkpoints that can't be read (a disk that was full, a file cut short) are first renamed to
            STEP.unreadable and told of, so that the run goes on from the latest that can.

    Raises:
        UserError: to read, where there is no checkpoint; where one there can't be read; to write, where there
            are checkpoints but none that can be read.
    """

    def __init__(self, directory: str | os.PathLike, write: bool = True):
        self.directory = (pathlib.Path(directory) if write else find(directory)).absolute()
        self._write = write
        if write:
            if hosts.writes():
                storage.set_aside_unreadable(self.directory)
            hosts.wait("unreadable checkpoints set aside")
        best = checkpoint_managers.BestN(get_metric_fn=_top1, n=1)
        options = ocp.CheckpointManagerOptions(
            create=write,
            cleanup_tmp_directories=write,
            best_fn=_top1,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [checkpoint_managers.LatestN(2), best]
            ),
        )
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "meta": ocp.JsonCheckpointHandler(),
            "data": ocp.JsonCheckpointHandler(),
        }
        with storage.readable(self.directory):
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def save(
        self, step: int, state: Any, meta: Mapping[str, Any], data_position: Any, metric: float | None = None
    ) -> None:
        """Begins to write a checkpoint; the arrays may be donated once this returns.

        Args:
            step: steps done; more than those of any checkpoint there.
            state: pytree of arrays.
            meta: what JSON can hold: the config, the name of the model (as "model"), metrics, version.
            data_position: where the data goes on; anything JSON can hold.
            metric: top-1, where this state was evaluated.

        Raises:
            UserError: where this one, or the one before in the background, couldn't be written.
        """
        # Checked here, as the background writer would fail out of sight.
        meta, data = json.loads(json.dumps(dict(meta))), json.loads(json.dumps({"position": data_position}))
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_fields(state)),
            meta=ocp.args.JsonSave(meta),
            data=ocp.args.JsonSave(data),
        )
        if hosts.writes():
            storage.check_space(self.directory, state)
        with storage.written(self.directory):
            saved = self._manager.save(step, args=args, metrics={"top1": metric})
        if not saved:
            latest = self._manager.latest_step()
            raise ValueError(f"checkpoint: expected a step after {latest} of {self.directory}, found {step}")

    def restore_latest(self, abstract_state: Any, model: str | None = None) -> Restored | None:
        """The checkpoint of the most steps, or None where there is none; see `restore_best`."""
        return self._restore("latest", abstract_state, model)

    def restore_best(self, abstract_state: Any, model: str | None = None) -> Restored | None:
        """The checkpoint of the highest top-1, or None where there is none.

        Args:
            abstract_state: pytree like the one saved, of arrays or `jax.ShapeDtypeStruct`s; each array
                comes back with its sharding (on the first device where it has none).
            model: expected name of the model; not checked where None.

        Raises:
            UserError: for a checkpoint of another model (its name, or the first array that differs), or
                one that can't be read.
        """
        return self._restore("best", abstract_state, model)

    def read_meta(self, which: Which = "best") -> dict[str, Any] | None:
        """What was saved as `meta`, or None where there is no checkpoint."""
        step = self._step(which)
        return None if step is None else self._json(step, "meta")

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, one being written included; None where there is none."""
        return self._manager.latest_step()

    def delete(self, step: int) -> None:
        """Deletes a checkpoint."""
        with storage.written(self.directory):
            self._manager.wait_until_finished()
            self._manager.delete(step)

    def wait(self) -> None:
        """Waits until everything is written; raises UserError where something couldn't be."""
        with storage.written(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """`wait`, and ends it."""
        with storage.written(self.directory):
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, _, error: BaseException | None, __) -> None:
        try:
            self.close()
        except UserError:
            if error is None:  # else it is the error on its way that tells what happened first
                raise

    def _step(self, which: Which) -> int | None:
        self._manager.wait_until_finished()
        return self._manager.best_step() if which == "best" else self._manager.latest_step()

    def _json(self, step: int, item: str) -> dict[str, Any]:
        with storage.readable(self.directory / str(step)):
            return self._manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.JsonRestore()}))[
                item
            ]

    def _restore(self, which: Which, abstract_state: Any, model: str | None) -> Restored | None:
        step = self._step(which)
        if step is None:
            return None
        path = self.directory / str(step)
        meta = self._json(step, "meta")
        if model is not None and meta.get("model") != model:
            raise UserError(f"checkpoint {path}: expected model {model!r}, found {meta.get('model')!r}")
        wanted = jax.tree.map(_abstract, _fields(abstract_state))
        with storage.readable(path):
            if not self._write:  # else all were looked at before
                storage.check_storage(path / "state")
            saved = self._manager.item_metadata(step)["state"].tree
        storage.check_same_arrays(path, wanted, saved)
        with storage.readable(path):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
            state = self._manager.restore(step, args=args)["state"]
        if dataclasses.is_dataclass(abstract_state):
            state = dataclasses.replace(abstract_state, **state)
        return Restored(step, state, meta, self._json(step, "data")["position"])


def holds_checkpoint(folder: pathlib.Path) -> bool:
    """Whether a checkpoint lies in a folder of checkpoints."""
    return folder.is_dir() and any(entry.name.isdecimal() for entry in folder.iterdir())


def find(directory: str | os.PathLike) -> pathlib.Path:
    """The folder of checkpoints that a user means by it or by the workdir around it.

    Raises:
        UserError: where neither holds a checkpoint.
    """
    directory = pathlib.Path(directory)
    for folder in (directory / FOLDER, directory):
        if holds_checkpoint(folder):
            return folder
    found = "no checkpoint in it" if directory.is_dir() else "no such folder"
    raise UserError(f"checkpoint {directory}: expected a run's workdir or its {FOLDER} folder, found {found}")


def read_meta(directory: str | os.PathLike, which: Which = "best") -> dict[str, Any]:
    """What was saved as `meta` in the best or latest checkpoint of a run, without knowing its model.

    Raises:
        UserError: where there is no checkpoint, or one that can't be read.
    """
    with Checkpoints(directory, write=False) as checkpoints:
        return checkpoints.read_meta(which)


def _top1(metrics: Mapping[str, Any]) -> float:
    top1 = metrics["top1"]
    return -math.inf if top1 is None or math.isnan(top1) else top1


def _fields(state: Any) -> Any:
    """A dataclass as a dict of its fields, under the same names in storage, and without those that are None.

    So a field that came with a later version, and isn't used, is neither written nor missed.
    """
    if not dataclasses.is_dataclass(state):
        return state
    values = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in values.items() if value is not None}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
