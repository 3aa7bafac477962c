"""`adafuse table`: parameters and cost of every system of the paper's tables, beside the paper's."""

import csv
import dataclasses
import functools
import io
from collections.abc import Callable, Iterable, Sequence

import jax
from flax import nnx

from adafuse_jax.models.zoo import create_model
from adafuse_jax.ops import costs
from adafuse_jax.report.paper import DATA_SETS, Row, rows

CLASSES, FRAMES, SIZE = 174, 8, 224  # with which the published counter's figures come out
_APART = 1.0  # per cent, from which on a difference is explained


@dataclasses.dataclass(frozen=True)
class Counted:
    """A row of the paper with what its model here comes to.

    Attributes:
        row: of the paper.
        params: millions.
        dense: GMACs per clip with everything computed.
        gmacs: GMACs per clip to be compared with the paper's; None where they depend on a trained policy.
    """

    row: Row
    params: float
    dense: float
    gmacs: float | None

    @property
    def params_apart(self) -> float | None:
        """Per cent by which our parameters exceed the paper's."""
        return None if self.row.params is None else 100 * (self.params / self.row.params - 1)

    @property
    def gmacs_apart(self) -> float | None:
        """Per cent by which our GMACs exceed the paper's."""
        return None if self.gmacs is None else 100 * (self.gmacs / self.row.gmacs - 1)

    @property
    def differs(self) -> bool:
        """Whether a figure is more than 1% off the paper's."""
        return any(abs(p) > _APART for p in (self.params_apart, self.gmacs_apart) if p is not None)


def count(row: Row) -> Counted:
    """Makes the row's model without weights and counts it."""
    params, frame = _sizes(row.model, tuple(row.options.items()))
    dense = frame.dense * FRAMES / 1e9
    gmacs = None if row.learnt else dense
    if row.shares is not None:
        gmacs = costs.expected(frame, row.shares, FRAMES) / 1e9
    return Counted(row, params / 1e6, dense, gmacs)


@functools.cache
def _sizes(name: str, options: tuple) -> tuple[int, costs.FrameCost]:
    model = nnx.eval_shape(lambda: create_model(name, num_classes=CLASSES, **dict(options)))
    params = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    return params, model.count((SIZE, SIZE))


_COLUMNS = (
    "data", "method", "backbone", "params M", "paper", "apart", "dense GMACs", "GMACs", "paper", "apart",
    "top-1", "top-5", "config", "note",
)  # fmt: skip


def render(style: str, data: Sequence[str] = tuple(DATA_SETS), shown: Callable = iter) -> str:
    """The table.

    Args:
        style: "text", "markdown" or "csv".
        data: the data sets wanted.
        shown: wraps the rows while they are counted, to show progress.
    """
    counted = [count(row) for row in shown([row for row in rows() if row.data in data])]
    cells = [_COLUMNS, *map(_cells, counted)]
    return {"text": _text, "markdown": _markdown, "csv": _csv}[style](cells)


def _cells(counted: Counted) -> tuple[str, ...]:
    row = counted.row

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return (
        row.data,
        row.method,
        row.backbone,
        f"{counted.params:.3f}",
        number(row.params, ".1f"),
        number(counted.params_apart, "+.1f") + ("%" if row.params else ""),
        f"{counted.dense:.2f}",
        number(counted.gmacs, ".2f"),
        f"{row.gmacs:g}",
        number(counted.gmacs_apart, "+.2f") + ("%" if counted.gmacs is not None else ""),
        f"{row.top1:g}",
        number(row.top5, "g"),
        row.config,
        row.note,
    )


def _text(cells: list[tuple[str, ...]]) -> str:
    """Columns side by side, notes numbered below."""
    notes = list(dict.fromkeys(line[-1] for line in cells[1:] if line[-1]))
    lines = [(*cells[0][:-1], "note")]
    lines += [(*line[:-1], f"[{notes.index(line[-1]) + 1}]" if line[-1] else "") for line in cells[1:]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = {0, 1, 2, len(widths) - 2, len(widths) - 1}
    shown = [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    shown += ["", *_explanation()]
    return "\n".join([*shown, *(f"[{i}] {note}" for i, note in enumerate(notes, 1))])


def _markdown(cells: list[tuple[str, ...]]) -> str:
    head, *lines = cells
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def _csv(cells: Iterable[tuple[str, ...]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(cells)
    return out.getvalue().rstrip("\n")


def _explanation() -> list[str]:
    return [
        f"Counted for {CLASSES} classes and a clip of {FRAMES} frames of {SIZE}x{SIZE} pixels. GMACs: all of",
        "them where no policy decides, else at the shares of skip and reuse that the paper tells; - where it",
        "tells none. Accuracies are the paper's.",
    ]
