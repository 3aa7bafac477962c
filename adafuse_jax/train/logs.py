"""What a run writes while it goes: metrics.jsonl, what else takes its figures, and the progress bar."""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import tqdm

from adafuse_jax.errors import UserError
from adafuse_jax.train.events import Events, Named

FILE = "metrics.jsonl"
EVENTS = "events"


class Logs:
    """Figures by step, to `workdir`/metrics.jsonl (a JSON object a line) and `workdir`/events (TensorBoard).

    A line holds `step`, `split` and `time` (seconds since 1970), then the figures. NaN and infinity, which
    JSON doesn't know, are written as null. But for `time` and `speed`, which the clock decides, a run that
    was interrupted and went on has the same lines as one that wasn't.

    Args:
        workdir: folder of the run, made where missing.
        step: last step done by the checkpoint the run goes on from. What was written for later steps
            goes, as the run will do them again; everything goes with None, a run from its start.
        others: take the same figures, as `Events` does; closed with these.
        write: False for a process that leaves the writing to another: nothing is touched.

    Raises:
        UserError: where a line of the existing file, the last aside, isn't JSON.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        step: int | None = None,
        others: Sequence[Any] = (),
        write: bool = True,
    ):
        self.path = pathlib.Path(workdir) / FILE
        self.events = pathlib.Path(workdir) / EVENTS
        self._lines, self._others = None, others
        if not write:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            _drop_after(self.path, step)
        # Unbuffered: what couldn't be written isn't tried again later, in another place.
        self._lines = self.path.open("ab", buffering=0)
        self._others = (Events(self.events, step), *others)

    def write(self, step: int, split: str, figures: Mapping[str, Any]) -> None:
        """Writes one line, and each figure for TensorBoard under `split`/name.

        Args:
            step: steps done.
            split: "train" or "val".
            figures: numbers, the counts of histograms (`train.histograms`) as lists, and mappings of those.

        Raises:
            UserError: where it can't be written, or the file is gone (see `check`).
        """
        if self._lines is None:
            return
        self.check()
        line = {"step": int(step), "split": split, "time": time.time(), **_plain(figures)}
        flat = list(_flat(split, figures))
        try:
            self._lines.write((json.dumps(line, allow_nan=False) + "\n").encode())
            for other in self._others:
                other.write(step, flat)
        except OSError as error:
            raise UserError(
                f"logs in {self.path.parent}: expected to write to them, found: {error.strerror}"
            ) from error

    def check(self) -> None:
        """Raises UserError where the file isn't the one that was opened: what is written would be lost."""
        if self._lines is None:
            return
        try:
            there = os.path.samestat(os.stat(self.path), os.fstat(self._lines.fileno()))
        except OSError:
            there = False
        if not there:
            raise UserError(f"{self.path}: expected the file of this run, found it moved or deleted")

    def close(self, failed: bool = False) -> None:
        """Ends all files; what was written before is safe without it."""
        if self._lines is not None:
            self._lines.close()
        for other in self._others:
            with contextlib.suppress(OSError):  # all was written before; what could not be was told
                other.close(failed)

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, error: type[BaseException] | None, *_) -> None:
        self.close(failed=error is not None)


class Progress:
    """A bar on stderr: share done, time, clips/s, and the figures last given.

    On a terminal it stays on one line; in a file or a pipe it writes a plain line now and then.

    Args:
        name: what is going on, such as "train".
        steps: number of steps in all.
        batch_size: clips a step.
        done: steps done before, by an earlier run.
        file: where to write.
        seconds: shortest time between two states; by default 0.2 on a terminal, else 20.
        delay: seconds before it appears at all; for what is usually short.
        write: False for a process that leaves the writing to another.
    """

    def __init__(
        self,
        name: str,
        steps: int,
        batch_size: int,
        done: int = 0,
        file: TextIO | None = None,
        seconds: float | None = None,
        delay: float = 0.0,
        write: bool = True,
    ):
        file = file or sys.stderr
        terminal = file.isatty()
        self._bar = tqdm.tqdm(
            desc=name,
            disable=not write,
            total=steps,
            initial=done,
            unit=" clips",
            unit_scale=batch_size,
            file=file if terminal else _Lines(file),
            mininterval=seconds if seconds is not None else (0.2 if terminal else 20.0),
            miniters=1,
            delay=delay,
            leave=not delay,
            dynamic_ncols=terminal,
            bar_format=None
            if terminal
            else "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        )

    def update(
        self, loss: float | None = None, top1: float | None = None, gmacs: float | None = None, steps: int = 1
    ) -> None:
        """Counts `steps` more and shows the figures given: loss, top-1 (0 to 1), GMACs per clip."""
        shown = {"loss": (loss, ".3f"), "top-1": (top1, ".1%"), "GMACs": (gmacs, "#.3g")}
        figures = {name: format(value, form) for name, (value, form) in shown.items() if value is not None}
        if figures:
            self._bar.set_postfix(figures, refresh=False)
        self._bar.update(steps)

    def close(self) -> None:
        """Leaves the bar at its last state."""
        self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _Lines:
    """A file that is no terminal: each state of a bar becomes a line of its own."""

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, text: str) -> None:
        text = text.strip()
        if text:
            self._file.write(text + "\n")

    def flush(self) -> None:
        self._file.flush()


def _drop_after(path: pathlib.Path, step: int | None) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            if number == len(lines):  # a run killed while it wrote
                break
            raise UserError(
                f"{path}, line {number}: expected a JSON object with a step, found {line[:60]!r}"
            ) from None
        if step is not None and found <= step:
            kept.append(line + "\n")
    # Written beside and renamed, so that a run killed here leaves one whole file or the other.
    fresh = path.with_name(path.name + ".tmp")
    fresh.write_text("".join(kept), encoding="utf-8")
    os.replace(fresh, path)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, str | int):
        return value
    value = float(value)
    return value if math.isfinite(value) else None


def _flat(prefix: str, value: Any) -> Iterator[Named]:
    if isinstance(value, Mapping):
        for name, v in value.items():
            yield from _flat(f"{prefix}/{name}", v)
    elif isinstance(value, list):
        yield prefix, [float(v) for v in value]
    elif value is not None and not isinstance(value, str):
        yield prefix, float(value)
