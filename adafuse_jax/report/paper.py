"""What the paper reports, a row a system and data set (reference.md, section 2): reads paper.csv.

Its columns:
    config    the file in configs/ that reproduces the row
    data      a key of DATA_SETS
    method, backbone    as the paper calls them
    model, options      of `create_model`
    params, gmacs       millions; per clip of 8 frames of 224x224 pixels
    top1, top5          per cent
    cost      what gmacs depends on: "dense", nothing; "learnt", the trained policy; "shares S R", the shares
              of skip and reuse among the channels of the sites; "last S R", these among the channels of all
              blocks, of which the last stage alone has sites
    note      why the paper's figure isn't ours
"""

import csv
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DATA_SETS = {
    "sthv1": "Something-Something V1",
    "sthv2": "Something-Something V2",
    "jester": "Jester",
    "minik": "Mini-Kinetics",
}
# Channels of ResNet-50's 16 sites, and of those of its last stage.
_ALL, _LAST = 3776, 1536


@dataclasses.dataclass(frozen=True)
class Row:
    """A system on a data set; figures as in paper.csv, None where the paper gives none.

    Attributes:
        shares: of skip, reuse and keep at the sites, where `gmacs` is known to be at them.
    """

    config: str
    data: str
    method: str
    backbone: str
    model: str
    options: Mapping[str, Any]
    params: float | None
    gmacs: float
    top1: float
    top5: float | None
    learnt: bool
    shares: tuple[float, float, float] | None
    note: str


@functools.cache
def rows() -> tuple[Row, ...]:
    """All rows, in the order of the paper's tables."""
    with open(Path(__file__).with_name("paper.csv"), newline="", encoding="utf-8") as file:
        return tuple(_row(**values) for values in csv.DictReader(file))


def _row(*, options: str, cost: str, **values: str) -> Row:
    kind, *shares = cost.split()
    skip, reuse = (float(share) * (_ALL / _LAST if kind == "last" else 1) for share in shares or (0, 0))
    figures = {name: values.pop(name) for name in ("params", "gmacs", "top1", "top5")}
    pairs = (pair.split("=") for pair in options.split())
    return Row(
        **values,
        **{name: float(text) if text else None for name, text in figures.items()},
        options={name: _value(text) for name, text in pairs},
        learnt=kind == "learnt",
        shares=(skip, reuse, 1 - skip - reuse) if shares else None,
    )


def _value(text: str) -> Any:
    if "+" in text:
        return tuple(text.split("+"))
    return int(text) if text.isdecimal() else float(text)
