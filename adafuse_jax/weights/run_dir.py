"""The weights in a run's latest Orbax checkpoint, by the paths that variables have in a model here."""

import re
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from adafuse_jax.errors import UserError, unknown
from adafuse_jax.models.recognizer import Recognizer

# As `fit.GROUPS`, of the published names.
_GROUPS = {"policy": re.compile(r"\bfusion\."), "head": re.compile(r"^(fc|rnn|relations)\.")}


def latest(path: Path) -> Path | None:
    """The folder of the latest checkpoint of a run's workdir, or of the checkpoints folder in it."""
    for folder in (path / "checkpoints", path):
        steps = [int(e.name) for e in folder.iterdir() if e.name.isdecimal()] if folder.is_dir() else []
        if steps:
            return folder / str(max(steps))
    return None


def fill(model: Recognizer, checkpoint: Path, allow_missing: Iterable[str] = ()) -> None:
    """Fills a model from a checkpoint, strictly; see `fit.from_torch`.

    Raises:
        UserError: for a checkpoint that can't be read, or listing all arrays that don't fit.
    """
    allowed = []
    for group in allow_missing:
        if group not in _GROUPS:
            raise unknown("group to be missing", group, _GROUPS)
        allowed.append(_GROUPS[group])
    found = _arrays(checkpoint)
    state = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    variables = {".".join(map(str, path)): variable for path, variable in state}
    problems, matches = [], []
    for name in sorted(found.keys() | variables.keys()):
        given = found.get(name)
        variable = variables.get(name)
        if given is not None and variable is not None and given.shape == variable.shape:
            matches.append((variable, given))
        elif not any(pattern.search(name) for pattern in allowed):
            wanted = "no such array" if variable is None else variable.shape
            problems.append(f"{name}: expected {wanted}, found {'none' if given is None else given.shape}")
    if problems:
        raise UserError(
            f"checkpoint {checkpoint}: {len(problems)} arrays don't fit model {model.name!r}: "
            + "; ".join(problems)
        )
    for variable, given in matches:
        variable[...] = jnp.asarray(given, variable.dtype)


def _arrays(checkpoint: Path) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = (checkpoint / "state").absolute()
    try:
        with ocp.StandardCheckpointer() as reader:
            like = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
                reader.metadata(state).item_metadata.tree,
            )
            tree = reader.restore(state, like)
        # Averaged weights, where a run has them, are what its checkpoints are used with.
        weights = tree.get("ema") or (tree["params"], tree["stats"])
        leaves = jax.tree_util.tree_flatten_with_path(tuple(weights))[0]
    except Exception as error:  # Orbax raises bare Exceptions
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        raise UserError(
            f"checkpoint {checkpoint}: expected a complete checkpoint, found: {reason}"
        ) from error
    return {jax.tree_util.keystr(path[1:], simple=True, separator="."): np.asarray(a) for path, a in leaves}
