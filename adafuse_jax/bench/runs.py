"""Ways to run a model on clips and frame by frame, and their times by turns."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from adafuse_jax.bench.draws import Drawn
from adafuse_jax.compact import EXECUTIONS, Compact
from adafuse_jax.compact_gpu import Choice
from adafuse_jax.errors import UserError
from adafuse_jax.models.arnet import ARNet
from adafuse_jax.models.recognizer import Output, Recognizer
from adafuse_jax.streaming import Stream, StreamOutput


@dataclasses.dataclass(frozen=True)
class Runs:
    """Ways to run one model on one batch of clips.

    Attributes:
        clip: {execution: () -> what the model says}, on all frames at once.
        stream: {execution: () -> the same after each frame}, one frame after the other, each waited for.
        missing: why some of them are missing, a line each.
        choices: of each site whose block runs compactly or not by what was measured on a GPU.
    """

    clip: dict[str, Callable[[], Output]]
    stream: dict[str, Callable[[], list[StreamOutput]]]
    missing: list[str]
    choices: dict[str, Choice] = dataclasses.field(default_factory=dict)

    def named(self) -> dict[tuple[str, str], Callable[[], Any]]:
        """All of them, as {("clip" or "stream", execution): run}."""
        kinds = {"clip": self.clip, "stream": self.stream}
        return {(kind, execution): run for kind, of in kinds.items() for execution, run in of.items()}


def prepare(
    model: Recognizer | ARNet,
    clip: Float[Array, "b t h w 3"],
    drawn: Drawn | None = None,
    executions: Sequence[str] = EXECUTIONS,
) -> Runs:
    """Makes ready what of `executions` the model and the machine can do.

    Args:
        model: of the zoo.
        clip: normalised frames, float32.
        drawn: of the model, for as many clips and frames, to act as drawn; None: as the model decides.
        executions: of `compact.EXECUTIONS`.
    """
    runs = Runs({}, {}, [])
    on_clips, on_frames = (model, model) if drawn is None else (drawn.model, drawn.first)
    makers = {"dense": _Dense, "compact": _compact}
    for execution in executions:
        try:
            made = makers[execution](on_clips)
        except UserError as error:
            runs.missing.append(str(error))
            continue
        if made is None:
            runs.missing.append("compact execution: expected native code, found none here")
            continue
        if execution == "compact":
            runs.choices.update(made.choices(clip))
        runs.clip[execution] = lambda made=made: made(clip)
        try:
            stream = Stream(on_frames, execution)
        except UserError as error:
            runs.missing.append(str(error))
            continue
        if stream.execution != execution:
            runs.missing.append(f"compact execution of streams: none on {jax.default_backend()}")
        else:
            runs.stream[execution] = _frame_by_frame(stream, clip, drawn)
    # What holds of both executions is told once.
    return dataclasses.replace(runs, missing=list(dict.fromkeys(runs.missing)))


class _Dense:
    def __init__(self, model: Recognizer | ARNet):
        graph, self._weights = nnx.split(model)
        self._jitted = jax.jit(lambda weights, clip: nnx.merge(graph, weights)(clip))

    def __call__(self, clip: Float[Array, "b t h w 3"]) -> Output:
        return self._jitted(self._weights, clip)


def _compact(model: Recognizer | ARNet) -> Compact | None:
    made = Compact(model)
    return made if made.native else None


def _frame_by_frame(
    stream: Stream, clip: Float[Array, "b t h w 3"], drawn: Drawn | None
) -> Callable[[], list[StreamOutput]]:
    step, start = jax.jit(stream.step), stream.init(len(clip), clip.shape[2:4])
    frames = [jax.numpy.asarray(clip[:, t]) for t in range(clip.shape[1])]
    weights = [stream.weights if drawn is None else drawn.at(stream.weights, t) for t in range(len(frames))]

    def run() -> list[StreamOutput]:
        state, outs = start, []
        for of_frame, frame in zip(weights, frames, strict=True):
            state, out = jax.block_until_ready(step(of_frame, state, frame))
            outs.append(out)
        return outs

    return run


def take_turns(
    runs: Mapping[Any, Callable[[], Any]],
    turns: int,
    done: Callable[[], Any] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Any, Float[np.ndarray, " turns"]]:
    """Seconds of each run.

    All run once in a turn, every second turn backwards, so that a ratio of one turn is of one moment of the
    machine. Each runs once before, to be compiled.

    Args:
        runs: by any name.
        turns: how many.
        done: called after each run.
        clock: gives seconds.
    """
    for run in runs.values():
        jax.block_until_ready(run())
        done()
    seconds = {name: [] for name in runs}
    for turn in range(turns):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            start = clock()
            jax.block_until_ready(runs[name]())
            seconds[name].append(clock() - start)
            done()
    return {name: np.array(of) for name, of in seconds.items()}
