"""TensorBoard: scalars and histograms by step."""

import os
from collections.abc import Iterable

from tensorboardX import SummaryWriter

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
        self._writer = SummaryWriter(str(folder), purge_step=0 if step is None else step + 1)

    def write(self, step: int, values: Iterable[Named]) -> None:
        """Writes each value under its name."""
        for name, value in values:
            if isinstance(value, list):
                self._write_histogram(name, value, step)
            else:
                self._writer.add_scalar(name, value, step)

    def _write_histogram(self, name: str, counts: list[float], step: int) -> None:
        # All that is known of a frame's share is its bin; the sums, which TensorBoard doesn't draw, take the
        # middle of it.
        middles = [(a + b) / 2 for a, b in zip(histograms.EDGES, histograms.EDGES[1:], strict=False)]
        first, second = (sum(n * m**power for n, m in zip(counts, middles, strict=True)) for power in (1, 2))
        limits = histograms.EDGES[1:].tolist()
        self._writer.add_histogram_raw(name, 0.0, 1.0, sum(counts), first, second, limits, counts, step)

    def close(self, failed: bool = False) -> None:
        """Ends the file."""
        del failed
        self._writer.close()
