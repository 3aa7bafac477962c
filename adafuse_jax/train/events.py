"""TensorBoard: scalars and histograms by step.

Written at once, not by tensorboardX's SummaryWriter: its thread ends on a full disk, and the run would wait
for it for good.
"""

import os
import time
from collections.abc import Iterable

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from adafuse_jax.train import histograms

# A name with slashes, and a number or a histogram's counts (`train.histograms`).
Named = tuple[str, float | list[float]]


class Events:
    """Writes an event file into a folder.

    Args:
        folder: made where missing.
        step: what earlier files hold of later steps is not shown any more; None: nothing they hold is.
    """

    def __init__(self, folder: str | os.PathLike, step: int | None = None):
        os.makedirs(folder, exist_ok=True)
        self._writer = EventsWriter(os.path.join(folder, "events"), f".{os.getpid()}")
        first = 0 if step is None else step + 1
        self._write(first, file_version="brain.Event:2")
        self._write(first, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Iterable[Named]) -> None:
        """Writes each value under its name; raises OSError where it can't."""
        for name, value in values:
            shown = self._histogram(name, value) if isinstance(value, list) else summary.scalar(name, value)
            self._write(step, summary=shown)
        self._writer.flush()

    def _write(self, step: int, **what) -> None:
        self._writer.write_event(Event(step=step, wall_time=time.time(), **what))

    def _histogram(self, name: str, counts: list[float]):
        # All that is known of a frame's share is its bin; the sums, which TensorBoard doesn't draw, take the
        # middle of it.
        middles = [(a + b) / 2 for a, b in zip(histograms.EDGES, histograms.EDGES[1:], strict=False)]
        first, second = (sum(n * m**power for n, m in zip(counts, middles, strict=True)) for power in (1, 2))
        limits = histograms.EDGES[1:].tolist()
        return summary.histogram_raw(name, 0.0, 1.0, sum(counts), first, second, limits, counts)

    def close(self, failed: bool = False) -> None:
        """Ends the file."""
        del failed
        self._writer.close()
