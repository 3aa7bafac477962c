"""The metrics of the steps since the last log, and how many of the last steps were skipped in a row."""

import logging
from typing import Any

import jax
import numpy as np

from adafuse_jax.errors import UserError
from adafuse_jax.train import hosts
from adafuse_jax.train.metrics import Metrics

_log = logging.getLogger(__name__)


# Enough that no device waits for the next step; few enough that a run which is to stop can do so soon.
AHEAD = 2

EMPTY = {"sums": None, "skipped_in_a_row": 0}  # a window's state without any step


class Window:
    """Gathers the steps' metrics, without keeping the devices waiting.

    Its state travels with a checkpoint, so that a run's log doesn't show where it was interrupted.

    Args:
        most_skipped: steps that may be skipped in a row.
    """

    def __init__(self, most_skipped: int):
        self.skipped_in_a_row = 0
        self._most = most_skipped
        self._new: list[tuple[int, Metrics]] = []
        self._total: Metrics | None = None
        self._restored: list[Any] | None = None  # leaves of the total, until a step tells their structure

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes in what step number `step` gave; waits while more than `AHEAD` steps are under way."""
        self._new.append((step, metrics))
        if len(self._new) > AHEAD:
            jax.block_until_ready(self._new[-AHEAD - 1][1])

    def fetch(self) -> None:
        """Waits for all steps and looks at them.

        Raises:
            UserError: where too many in a row were skipped.
        """
        for step, metrics in jax.device_get(self._new):
            self._count(step, bool(metrics.skipped))
            if self._restored is not None:
                leaves, structure = jax.tree.flatten(metrics)
                sums = [
                    np.reshape(np.float32(a), b.shape) for a, b in zip(self._restored, leaves, strict=True)
                ]
                self._total, self._restored = jax.tree.unflatten(structure, sums), None
            self._total = metrics if self._total is None else self._total.merge(metrics)
        self._new = []

    def take(self) -> Metrics:
        """The sum over all steps since it was last taken; see `fetch`."""
        self.fetch()
        total, self._total = self._total, None
        return total

    def get_state(self) -> dict[str, Any]:
        """What is gathered, as JSON can hold it; see `fetch`."""
        self.fetch()
        leaves = self._restored
        if self._total is not None:
            leaves = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(self._total)]
        return {"sums": leaves, "skipped_in_a_row": self.skipped_in_a_row}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a state that `get_state` gave."""
        self._restored, self.skipped_in_a_row = state["sums"], state["skipped_in_a_row"]

    def _count(self, step: int, skipped: bool) -> None:
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if skipped and hosts.writes():
            _log.warning("step %d left out: its loss or gradient isn't finite", step)
        if self.skipped_in_a_row > self._most:
            raise UserError(
                f"step {step}: expected a finite loss and gradient, found none in {self.skipped_in_a_row} "
                f"steps in a row (config.train.max_skipped_steps {self._most}); a lower "
                "config.optimizer.learning_rate may help"
            )
