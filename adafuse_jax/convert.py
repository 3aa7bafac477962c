"""`adafuse convert`: weights of any kind as a safetensors file with a card, to predict, evaluate, train."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from adafuse_jax import weights
from adafuse_jax.config import Data
from adafuse_jax.errors import UserError
from adafuse_jax.models.recognizer import Recognizer
from adafuse_jax.models.zoo import create_model
from adafuse_jax.predict import as_filmed
from adafuse_jax.train import run
from adafuse_jax.train.checkpoint import find
from adafuse_jax.train.state import put_together
from adafuse_jax.weights import card as cards
from adafuse_jax.weights import files, fit


@dataclasses.dataclass(frozen=True)
class Converted:
    """A model filled with converted weights.

    Attributes:
        model: of the zoo.
        card: of the weights.
        fit: what was filled from what; None for a run's checkpoint, which is a model already.
    """

    model: nnx.Module
    card: weights.Card
    fit: fit.Fit | None

    def mapping(self) -> str:
        """A line a variable: the key it comes from, where it goes, its shape here."""
        if self.fit is None:
            return "a checkpoint of a run: every array as it is"
        paths = {
            id(variable): ".".join(map(str, path))
            for path, variable in nnx.to_flat_state(nnx.state(self.model))
        }
        lines = [f"{m.key} -> {paths[id(m.variable)]} {m.variable.shape}" for m in self.fit.matches]
        lines += [f"(initial) {name}" for name in self.fit.missing]
        return "\n".join([*lines, *(f"{key} (left out)" for key in self.fit.left_out)])


def convert(
    source: Path,
    model: str | None,
    *,
    num_classes: int | None = None,
    options: Mapping[str, Any] | None = None,
    allow_missing: Sequence[str] = (),
    class_names: Sequence[str] = (),
    licence: str = "",
    origin: str = "",
) -> Converted:
    """Reads weights and makes their model.

    Args:
        source: a file of torch.save, safetensors or npz, an earlier conversion's folder, or a run's workdir.
        model: name in the zoo; may be None where the source has a card or is a run.
        num_classes: of the classifier; None: as the source has it.
        options: of `create_model`.
        allow_missing: see `weights.from_torch`.
        class_names: in label order.
        licence: of the weights.
        origin: where they come from; default: the source's name.

    Raises:
        UserError: where the source can't be read or doesn't fit.
    """
    own = {"class_names": tuple(class_names), "licence": licence, "source": origin}
    if source.is_dir() and not (source / files.FILE).exists():
        find(source)  # or says what is wrong with it
        trained = run.load(source)
        if model not in (None, trained.config.model.name):
            raise UserError(
                f"checkpoint {source}: expected model {model!r}, found {trained.config.model.name!r}"
            )
        return Converted(model_of(trained), _with(card_of(trained), own), None)
    found = files.read(source)
    card = found.card
    if card is None:
        if model is None:
            raise UserError(f"weights {source}: expected --model with weights without a card, found none")
        card = weights.Card(
            model, num_classes or _classes(found.arrays), dict(options or {}), _published_input(model),
            source=source.name, sha256=cards.sha256(source),
        )  # fmt: skip
    elif model not in (None, card.model):
        raise UserError(f"weights {source}: expected model {model!r}, found those of {card.model!r}")
    card = dataclasses.replace(card, num_classes=num_classes or card.num_classes)
    made = create_model(card.model, num_classes=card.num_classes, **card.options)
    fitted = fit.fit(made, found.arrays, allow_missing)
    fit.fill(fitted)
    return Converted(made, _with(card, own), fitted)


def model_of(trained: run.Trained) -> Recognizer:
    """The model of a checkpoint, with its weights."""
    parts = trained.parts
    return put_together(parts.graph, jax.device_get(parts.params), jax.device_get(parts.stats))


def card_of(trained: run.Trained) -> weights.Card:
    """The card of a checkpoint's weights."""
    config, data = trained.config, as_filmed(trained.config.data)
    return weights.Card(
        config.model.name,
        data.num_classes,
        dict(config.model.options),
        cards.input_of(data),
        class_names=trained.class_names,
        source=f"{trained.path}, step {trained.step}",
    )


def _with(card: weights.Card, given: Mapping[str, Any]) -> weights.Card:
    card = dataclasses.replace(card, **{name: value for name, value in given.items() if value})
    if card.class_names and len(card.class_names) != card.num_classes:
        raise UserError(f"class names: expected {card.num_classes}, found {len(card.class_names)}")
    return card


def _classes(arrays: Mapping[str, Any]) -> int:
    """Classes of the classifier in a state dict, or the published 174."""
    for key, value in arrays.items():
        layer = key.removeprefix("module.").removesuffix(".bias")
        if key.endswith(".bias") and layer in ("new_fc", *fit.HEADS):
            return len(value)
    return 174


def _published_input(model: str) -> dict[str, Any]:
    """How the published code prepares the input of a model (reference.md, section 3, "Augmentation")."""
    data = Data()
    if model.endswith("_inc"):
        inception = {"channel_order": "bgr", "max_value": 255.0, "std": (1.0, 1.0, 1.0)}
        data = dataclasses.replace(data, mean=(104.0, 117.0, 128.0), **inception)
    return cards.input_of(data)
