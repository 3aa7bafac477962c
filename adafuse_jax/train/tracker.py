"""Weights & Biases, for who wants it: `config.train.wandb_project`, and the package (the extra `wandb`).

A run that goes on goes on there too, under the id kept in its workdir. What it logs are the values of
metrics.jsonl; those of steps that are done again after an interruption come twice.
"""

import uuid
from collections.abc import Iterable
from pathlib import Path

from adafuse_jax.config import Config
from adafuse_jax.errors import UserError
from adafuse_jax.train import histograms
from adafuse_jax.train.events import Named

ID_FILE = "wandb_id"


class Tracker:
    """A run in a project of Weights & Biases.

    Where it lies and whether it is online is said as always there: WANDB_ENTITY, WANDB_MODE=offline, ...

    Args:
        config: of the run; its `wandb_project` isn't empty.
        workdir: exists; its name is the run's.
        step: of the checkpoint that the run goes on from; None: it begins, and is a new one there too.

    Raises:
        UserError: without the package, or where it can't start.
    """

    def __init__(self, config: Config, workdir: Path, step: int | None):
        self._wandb = package()
        id_file = workdir / ID_FILE
        if step is None or not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:8] + "\n", encoding="utf-8")
        try:
            self._run = self._wandb.init(
                project=config.train.wandb_project,
                id=id_file.read_text(encoding="utf-8").strip(),
                resume="allow",
                name=workdir.absolute().name,
                dir=str(workdir),
                config=config.to_dict(),
                allow_val_change=True,  # of what may differ when a run goes on
            )
        except self._wandb.Error as error:
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"config.train.wandb_project: expected wandb to start, found: {reason} (WANDB_MODE=offline "
                "needs no account and no network)"
            ) from error
        # Its own step must never go back, which ours does when steps are done again.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Iterable[Named]) -> None:
        """Logs the values of a step in one row."""
        row = {name: self._histogram(v) if isinstance(v, list) else v for name, v in values}
        self._run.log({**row, "step": step})

    def _histogram(self, counts: list[float]):
        return self._wandb.Histogram(np_histogram=(counts, histograms.EDGES.tolist()))

    def close(self, failed: bool = False) -> None:
        """Ends the run there, as finished or as failed."""
        self._run.finish(exit_code=int(failed))


def package():
    """The package `wandb`; raises UserError where it isn't installed."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"config.train.wandb_project: expected wandb (pip install 'adafuse_jax[wandb]'), found: {error}"
        ) from error
    return wandb
