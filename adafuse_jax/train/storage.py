"""The files of checkpoints: whether they can be read and written, told in one line."""

import contextlib
import json
import logging
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import tensorstore

from adafuse_jax.errors import UserError
from adafuse_jax.train import faults

_log = logging.getLogger(__name__)

_GOES_ON = "the run goes on from the last whole one when that is put right"
_JSON = ("meta/metadata", "data/metadata", "metrics/metrics")  # in the folder of a step


@contextlib.contextmanager
def readable(path: pathlib.Path) -> Iterator[None]:
    """What Orbax and its storage raise for a damaged checkpoint, as one line to the user."""
    try:
        yield
    except (RuntimeError, MemoryError):  # the device's trouble, not the file's
        raise
    except Exception as error:  # Orbax raises bare Exceptions
        raise UserError(
            f"checkpoint {path}: expected a complete checkpoint, found one that can't be read"
            f" ({faults.reason(error)})"
        ) from error


@contextlib.contextmanager
def written(directory: pathlib.Path) -> Iterator[None]:
    """What writing raises, at once or later for what went on in the background, as one line to the user."""
    try:
        yield
    except Exception as error:  # Orbax and its storage raise what they like
        raise UserError(
            f"checkpoint in {directory}: expected to write it, found {faults.reason(error)}; {_GOES_ON}"
        ) from error


def check_space(directory: pathlib.Path, state: Any) -> None:
    """Raises UserError where a disk hasn't room for the arrays of `state`.

    To be asked beforehand, as Orbax lets each of its threads print its own traceback.
    """
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(directory).free if directory.is_dir() else needed
    if free < needed:
        raise UserError(
            f"checkpoint in {directory}: expected {needed} bytes free to write it, found {free}; {_GOES_ON}"
        )


def set_aside_unreadable(directory: pathlib.Path) -> None:
    """Renames the checkpoints in a folder that can't be read to STEP.unreadable, and tells of them.

    Raises:
        UserError: where there are checkpoints, but none that can be read; nothing is renamed then.
    """
    steps = sorted((p for p in directory.glob("*") if p.name.isdecimal()), key=lambda p: int(p.name))
    unreadable = []
    for step in steps:
        try:
            with readable(step):
                for item in _JSON:
                    json.loads((step / item).read_bytes())
                check_storage(step / "state")
        except UserError as error:
            unreadable.append((step, error))
    for step, error in unreadable:
        if len(unreadable) == len(steps):
            raise error
        aside = step.with_name(step.name + ".unreadable")
        _log.warning("%s: set aside as %s", error, aside.name)
        shutil.rmtree(aside, ignore_errors=True)
        step.rename(aside)


def check_storage(state: pathlib.Path) -> None:
    """Reads all bytes of a checkpoint's arrays once; raises what storage raises where they are damaged.

    Orbax notices the same damage, but reads all arrays at once and lets each failure print its own traceback
    from a thread.
    """
    if not (state / "manifest.ocdbt").exists() or not (state / "_METADATA").exists():
        raise FileNotFoundError(f"{state} lacks manifest.ocdbt or _METADATA")
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"{state.as_uri()}/"}).result()
    for key in store.list().result():
        store.read(key).result()


def _describe(leaf: Any) -> str:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # Orbax saves a key as its data
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return f"{leaf.dtype}{list(leaf.shape)}"


def check_same_arrays(path: pathlib.Path, expected: Any, found: Any) -> None:
    """Raises UserError naming the first array of a checkpoint that differs in place, type or shape."""

    def arrays(tree):
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {
            jax.tree_util.keystr(key, simple=True, separator="."): _describe(leaf) for key, leaf in leaves
        }

    expected, found = arrays(expected), arrays(found)
    for key in sorted(expected | found):
        if expected.get(key) != found.get(key):
            raise UserError(
                f"checkpoint {path} is of another model: {key}: expected"
                f" {expected.get(key, 'no such array')}, found {found.get(key, 'no such array')}"
            )
