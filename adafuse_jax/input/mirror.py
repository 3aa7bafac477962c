"""What becomes of a label when its clip is mirrored: classes that know left from right swap."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from adafuse_jax.errors import UserError, unknown
from adafuse_jax.input.manifest import read_lines


def mirrored_labels(path: str | Path, class_names: Sequence[str]) -> Int[np.ndarray, " C"]:
    """The label of each class's mirror image: its own, or that of the class it is paired with.

    Args:
        path: text file of pairs, one a line: two classes, by name or number, separated by a tab.
        class_names: of the C classes, in label order.

    Raises:
        UserError: for a missing or empty file, a line of another form, an unknown class, or a class that
            is paired twice or with itself.
    """
    known = {str(label): label for label in range(len(class_names))}
    known |= {name: label for label, name in enumerate(class_names)}  # a name that is a number stays one
    mirrored = np.arange(len(class_names))
    lines = read_lines(Path(path), "mirrored classes")
    if not lines:
        raise UserError(f"mirrored classes {path}: expected a pair a line, found none")
    for number, line in lines:
        where = f"mirrored classes {path}, line {number}"
        pair = [text.strip() for text in line.split("\t")]
        if len(pair) != 2:
            raise UserError(f"{where}: expected two classes separated by a tab, found {line!r}")
        for text in pair:
            if text not in known:
                raise unknown(f"class in {where}:", text, class_names)
        a, b = (known[text] for text in pair)
        for label, text in zip((a, b), pair, strict=True):
            if a == b or mirrored[label] != label:
                raise UserError(f"{where}: expected a class in one pair, with another, found {text!r} again")
        mirrored[[a, b]] = b, a
    return mirrored
