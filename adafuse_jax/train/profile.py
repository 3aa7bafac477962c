"""A trace of a few steps, for TensorBoard's profiler, xprof or Perfetto."""

from pathlib import Path
from typing import Any

import jax

from adafuse_jax.errors import UserError

FOLDER = "profile"  # inside a run's workdir


def parse(text: str) -> tuple[int, int]:
    """(first, last) of "FIRST:LAST"; raises UserError for anything else."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UserError(f"--profile: expected FIRST:LAST, two steps of 1 or more, found {text!r}")
    return int(first), int(last)


class Profile:
    """Traces the steps `first` to `last` of those that this process does, counted from 1.

    Args:
        steps: first and last; None: nothing is traced.
        folder: to write to.
        left: how many steps will be done.

    Raises:
        UserError: for steps that won't be done.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path, left: int):
        if steps is not None and steps[1] > left:
            raise UserError(f"--profile: expected steps of the {left} to do, found {steps[0]}:{steps[1]}")
        self._first, self._last = steps or (0, 0)
        self._folder, self._done, self._tracing = folder, 0, False
        self._step: jax.profiler.StepTraceAnnotation | None = None

    def before(self, step: int) -> None:
        """To be called before a step, and the batch for it; its number is what the trace calls it."""
        self._done += 1
        if self._done == self._first:
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        if self._tracing:
            self._step = jax.profiler.StepTraceAnnotation("train", step_num=step)
            self._step.__enter__()

    def after(self, outputs: Any) -> None:
        """To be called once the step is dispatched; of the last one traced, waits for its `outputs`."""
        if self._tracing and self._done == self._last:
            jax.block_until_ready(outputs)
        self._end_step()
        if self._done == self._last:
            self._stop()

    def _end_step(self) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None

    def _stop(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_) -> None:
        """Writes what there is, where the run ends within the steps to trace."""
        self._end_step()
        self._stop()
