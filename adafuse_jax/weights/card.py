"""What travels with weights: which model they are of, how its input was prepared, whose they are."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adafuse_jax.errors import UserError

if TYPE_CHECKING:  # it brings ml_collections, which plugging the layer into a model doesn't need
    from adafuse_jax.config import Data

# The fields of config.data that are the weights' own: other values make other inputs.
INPUT = ("mean", "std", "channel_order", "max_value")
# Those of the test they were meant for; another test may choose otherwise.
TEST = ("num_frames", "image_size", "resize", "sampling")


@dataclasses.dataclass(frozen=True)
class Card:
    """Of weights.

    Attributes:
        model: name in the zoo.
        num_classes: of the classifier.
        options: of `create_model`.
        data: how clips become input: fields of `config.Data` (INPUT and TEST).
        interpolation: with which frames were resized for evaluation.
        class_names: in label order; empty where not known.
        licence: under which the weights may be used; empty where not known.
        source: where they came from.
        sha256: of the file they were converted from; empty for weights trained here.
    """

    model: str
    num_classes: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    interpolation: str = "bilinear, antialiased (Pillow)"
    class_names: Sequence[str] = ()
    licence: str = ""
    source: str = ""
    sha256: str = ""

    def to_json(self) -> str:
        """As JSON in one line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Card":
        """From what `to_json` gave.

        Raises:
            UserError: for anything else.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        try:
            values = json.loads(text)
            if not isinstance(values, dict) or not set(values) <= known:
                raise ValueError(f"expected the fields {sorted(known)}")
            card = cls(**values)
            if not isinstance(card.model, str) or not isinstance(card.num_classes, int):
                raise ValueError("expected a model's name and number of classes")
            return card
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"card of the weights: {' '.join(str(error).split())[:200]}") from None

    def apply(self, data: "Data") -> "Data":
        """The data's settings with the card's in their place."""
        return dataclasses.replace(data, num_classes=self.num_classes, **_tuples(self.data))

    def check(self, data: "Data", where: str) -> None:
        """Raises UserError where a config prepares another input than these weights want."""
        for name in INPUT:
            wanted, found = _tuples(self.data).get(name), getattr(data, name)
            if wanted is not None and wanted != found:
                raise UserError(f"config.data.{name}: expected {wanted}, as {where} wants it, found {found}")


def input_of(data: "Data") -> dict[str, Any]:
    """What a card says of a config's data."""
    return {name: getattr(data, name) for name in (*INPUT, *TEST)}


def sha256(path: Path) -> str:
    """Of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
