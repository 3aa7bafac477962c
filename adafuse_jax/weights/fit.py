"""Between a model and a state dict under the published names: strict, both ways, all misfits told at once."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from adafuse_jax.errors import UserError, unknown
from adafuse_jax.models.efficientnet import EfficientNet
from adafuse_jax.models.recognizer import Recognizer
from adafuse_jax.weights.published import CONSTANTS, canonical, entries, torch_shape
from adafuse_jax.weights.torchvision import efficientnet_names

# What weights for another task may lack, or hold for that task.
GROUPS = {
    "policy": re.compile(r"policy_net|gate_fc|^linear\."),
    "head": re.compile(r"^(new_fc|rnn|consensus|new_fc_list|lite_fc)\."),
}
# How others call the classifier, in nets that aren't wrapped as `base_model`.
HEADS = ("fc", "last_linear", "_fc", "classifier.1")


class Match(NamedTuple):
    """A variable of the model, the published name and the key it is filled from, and the value."""

    variable: nnx.Variable
    name: str
    key: str
    value: np.ndarray


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a state dict fits a model.

    Attributes:
        matches: what is filled.
        missing: published names that keep their initial values, as was allowed.
        left_out: keys that aren't used, as was allowed.
    """

    matches: list[Match]
    missing: list[str]
    left_out: list[str]


def from_torch(
    model: Recognizer, state_dict: Mapping[str, np.ndarray], allow_missing: Iterable[str] = ()
) -> Recognizer:
    """Fills the model with the weights of a published state dict.

    Args:
        model: from `create_model`; changed in place, but only if everything fits.
        state_dict: {key: array} in PyTorch's layout, with or without the prefix 'module.'. Known are the
            released checkpoints of AdaFuse and TSM (`conv1.net`, `downsample.0`), and the bare ImageNet nets
            of torchvision, EfficientNet-PyTorch and Cadene's BN-Inception.
        allow_missing: of "policy" and "head", what may be missing, or there for another task.

    Returns:
        The model.

    Raises:
        UserError: listing every key that is missing, left over, given in two spellings, of another shape
            than the model's, or that differs from another name of the same (shared) parameter.
    """
    fill(fit(model, state_dict, allow_missing))
    return model


def fill(fitted: Fit) -> None:
    """Puts the matched values into the model's variables."""
    for match in fitted.matches:
        match.variable[...] = jnp.asarray(match.value, match.variable.dtype)


def fit(model: Recognizer, state_dict: Mapping[str, np.ndarray], allow_missing: Iterable[str] = ()) -> Fit:
    """How a state dict fits a model; see `from_torch`, which applies it."""
    allowed = []
    for group in allow_missing:
        if group not in GROUPS:
            raise unknown("group to be missing", group, GROUPS)
        allowed.append(GROUPS[group])

    def may_differ(name: str) -> bool:
        return any(pattern.search(name) for pattern in allowed)

    found, keys, problems = {}, {}, []
    for key, name in _spelled(model, state_dict):
        value = np.asarray(state_dict[key])
        if name in found:
            problems.append(f"{key}: expected one spelling of {name}, found two")
        found[name], keys[name] = value, key
    matches, missing, used = [], [], set()
    for names, variable in entries(model):
        wanted = torch_shape(names[0], variable)
        given = [name for name in names if name in found]
        fits = [name for name in given if _shaped(found[name], wanted) is not None]
        if not fits and may_differ(names[0]):
            missing.append(names[0])
            continue
        used.update(names)
        if not given:
            problems.append(f"missing {names[0]} {wanted}")
            continue
        value = _shaped(found[given[0]], wanted)
        if value is None:
            problems.append(f"{keys[given[0]]}: expected {wanted}, found {_kind(found[given[0]])}")
            continue
        for other in given[1:]:
            if not np.array_equal(found[given[0]], found[other]):
                problems.append(f"{keys[other]}: expected the same values as {keys[given[0]]}")
        matches.append(Match(variable, names[0], keys[given[0]], _ours(value).reshape(variable.shape)))
    for name, constant in CONSTANTS.items():
        used |= {u.removesuffix(name) + constant for u in used if u.endswith("." + name)}
    over = [name for name in found if name not in used]
    problems += [f"left over {keys[name]} {_kind(found[name])}" for name in over if not may_differ(name)]
    if problems:
        raise UserError(
            f"state dict: {len(problems)} keys don't fit model {model.name!r}: " + "; ".join(problems)
        )
    return Fit(matches, missing, [keys[name] for name in over])


def to_torch(model: Recognizer) -> dict[str, np.ndarray]:
    """The model's weights as PyTorch would save them: the inverse of `from_torch`, under all their names."""
    found: dict[str, np.ndarray] = {}
    for names, variable in entries(model):
        value = np.asarray(variable[...])
        if value.ndim >= 2:
            value = value.transpose(value.ndim - 1, value.ndim - 2, *range(value.ndim - 2))
        value = np.ascontiguousarray(value).reshape(torch_shape(names[0], variable))
        found |= dict.fromkeys(names, value)
        for name in names:
            if name.endswith(".running_mean"):
                found[name.removesuffix("running_mean") + "num_batches_tracked"] = np.zeros((), np.int64)
    return found


def _spelled(model: Recognizer, state_dict: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, canonical published name) of a state dict; a bare ImageNet net's as if wrapped."""
    plain = {key: key.removeprefix("module.") for key in state_dict}
    if not any(name.startswith(("base_model", "new_fc")) for name in plain.values()):
        backbone = getattr(model, "backbone", None)
        theirs = efficientnet_names(backbone) if isinstance(backbone, EfficientNet) else {}
        for key, name in plain.items():
            layer, _, part = name.rpartition(".")
            ours = theirs.get(layer, "new_fc" if layer in HEADS else f"base_model.{layer}")
            plain[key] = f"{ours}.{part}"
    return ((key, canonical(name)) for key, name in plain.items())


def _shaped(value: np.ndarray, wanted: Sequence[int]) -> np.ndarray | None:
    """The value in the wanted shape, or None; Cadene's BatchNorms have a leading 1."""
    if value.dtype.kind not in "fV" or value.shape not in (wanted, (1, *wanted)):
        return None  # V: bfloat16
    return value.reshape(wanted)


def _ours(value: np.ndarray) -> np.ndarray:
    """(out, in, h, w) -> (h, w, in, out); (out, in) -> (in, out)."""
    return value.transpose(*range(2, value.ndim), 1, 0) if value.ndim >= 2 else value


def _kind(value: np.ndarray) -> str:
    return f"{value.shape}" if value.dtype.kind in "fV" else f"{value.dtype} {value.shape}"
