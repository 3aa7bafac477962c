"""What a data set holds by its owner's lists: class names, splits, clips; and reading those lists."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adafuse_jax.errors import UserError

UNKNOWN = -1  # the label of a clip whose class its owner keeps to himself

# Where label files lie: beside the clips, or as they come out of the owner's archive.
_FOLDERS = (".", "labels", "annotations", "*download-package-labels", "*download-package-labels/labels")


@dataclasses.dataclass(frozen=True)
class Item:
    """A clip: what its owner calls it, its label, and what the data set's encoder reads it from."""

    name: str
    label: int
    source: Any


@dataclasses.dataclass(frozen=True)
class Listing:
    """A data set before preparation.

    Attributes:
        class_names: in label order.
        splits: the clips of each split, in the owner's order.

    Raises:
        UserError: for a clip listed twice, in one split or in two, and a class named twice.
    """

    class_names: Sequence[str]
    splits: dict[str, list[Item]]

    def __post_init__(self):
        seen = {}
        for split, items in self.splits.items():
            for item in items:
                if item.name in seen:
                    where = f"in {seen[item.name]} and" if seen[item.name] != split else "twice"
                    raise UserError(
                        f"clip {item.name}: expected once in all splits, found {where} in {split}"
                    )
                seen[item.name] = split
        numbered(self.class_names)

    def digest(self) -> str:
        """A fingerprint of names, labels and their order."""
        content = [
            list(self.class_names),
            [[split, [[i.name, i.label] for i in items]] for split, items in self.splits.items()],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def find(folder: Path, *names: str, optional: bool = False) -> Path | None:
    """The first of `names` that is a file in `folder` or in one of the subfolders owners use.

    Raises:
        UserError: when there is none, unless `optional`.
    """
    for name in names:
        for place in _FOLDERS:
            for path in sorted(folder.glob(f"{place}/{name}")):
                if path.is_file():
                    return path
    if optional:
        return None
    raise UserError(
        f"{folder}: expected {' or '.join(names)} there or in labels/, found none; see data/README.md"
    )


def clips_folder(folder: Path, name: str) -> Path:
    """The folder `name` of clips in `folder`.

    Raises:
        UserError: when there is none.
    """
    path = folder / name
    if not path.is_dir():
        raise UserError(f"{folder}: expected the folder {name} of clips, found none; see data/README.md")
    return path


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that aren't blank, without surrounding space.

    Raises:
        UserError: for a file that isn't UTF-8 text, or has no such lines.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a UTF-8 text file, found: {error}") from error
    lines = [line for line in lines if line]
    if not lines:
        raise UserError(f"{path}: expected a line for each entry, found none")
    return lines


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: for anything else.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected a JSON file, found: {error}") from error


def numbered(class_names: Sequence[str]) -> dict[str, int]:
    """Labels by class.

    Raises:
        UserError: for a class named twice.
    """
    labels = {}
    for name in class_names:
        if name in labels:
            raise UserError(f"class {name!r}: expected once in the list of classes, found twice")
        labels[name] = len(labels)
    return labels


def label_of(name: str, text: str, labels: dict[str, int], where: Path) -> int:
    """The label of a clip by its class's name.

    Raises:
        UserError: for a class that isn't among `labels`.
    """
    if text not in labels:
        raise UserError(f"{where}: clip {name}: expected one of the {len(labels)} classes, found {text!r}")
    return labels[text]
