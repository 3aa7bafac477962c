"""Training from a config: steps, evaluations, checkpoints, logs; goes on where an earlier run stopped."""

import logging
import math
import signal
from pathlib import Path
from typing import Any

import jax

from adafuse_jax.config import Config
from adafuse_jax.errors import UserError
from adafuse_jax.input import pipeline, sources
from adafuse_jax.train import mesh, preflight, record
from adafuse_jax.train import state as states
from adafuse_jax.train.checkpoint import FOLDER, Checkpoints, holds_checkpoint
from adafuse_jax.train.logs import Logs, Progress
from adafuse_jax.train.losses import flops_weight_at
from adafuse_jax.train.metrics import Metrics
from adafuse_jax.train.optim import make_optimizer, schedule
from adafuse_jax.train.profile import FOLDER as PROFILE_FOLDER
from adafuse_jax.train.profile import Profile
from adafuse_jax.train.run import Evaluator, Parts, build, claim, meta, start
from adafuse_jax.train.speed import Speed
from adafuse_jax.train.step import make_train_step
from adafuse_jax.train.stop import Stop
from adafuse_jax.train.tracker import Tracker

_log = logging.getLogger(__name__)


def train(
    config: Config,
    workdir: Path,
    devices: list[jax.Device] | None = None,
    profile: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Trains a config to its end, or goes on with the run in `workdir`.

    Args:
        config: of the run.
        workdir: folder for all that the run writes: config.json, run.json, metrics.jsonl, events/,
            checkpoints/.
        devices: to train on; None: all.
        profile: first and last step to trace (see `Profile`), to profile/ in the workdir; None: none.

    Returns:
        The last evaluation (see `Evaluator`), and `step`.

    Raises:
        UserError: for a config that can't be run, a workdir of another run, unreadable clips beyond the
            set share, or a loss that isn't finite.
        KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM, once the step under way is saved.
    """
    preflight.check(config, workdir, devices)
    per_epoch = pipeline.steps_per_epoch(config, config.train.batch_size)
    total = max(1, round(config.train.epochs * per_epoch))
    data = pipeline.make_train(
        config, batch_size=config.train.batch_size, seed=config.train.seed, **mesh.processes()
    )
    sources.make_source(config, "val")  # a list that can't be used stops the run now, not after an epoch
    names = sources.class_names(config.data)
    parts = build(config, devices)
    optimizer = make_optimizer(config.optimizer, parts.params, per_epoch, total)
    rate = schedule(config.optimizer, per_epoch, total)
    if not holds_checkpoint(workdir / FOLDER):
        parts = start(config, parts)
    claim(workdir, config)
    writes = jax.process_index() == 0
    if writes:
        record.add(workdir, config, list(parts.devices.devices.flat))
    state = jax.device_put(
        states.initial(parts.params, parts.stats, optimizer), mesh.replicated(parts.devices)
    )
    with Checkpoints(workdir / FOLDER) as checkpoints:
        restored = checkpoints.restore_latest(state, config.model.name)
        if restored:
            state = restored.state
            data.set_state(restored.data)
            _log.info("going on from step %d of %d in %s", restored.step, total, workdir)
            if restored.step > total:
                raise UserError(
                    f"workdir {workdir}: expected a run of at most {total} steps, found one of "
                    f"{restored.step}; have the clips of config.data.train_list changed?"
                )
            if restored.step == total and restored.meta["metrics"]:
                _log.info("this run was finished before; nothing is left to train")
                return restored.meta["metrics"]
        begin = restored.step if restored else None
        with Profile(profile if writes else None, workdir / PROFILE_FOLDER, total - (begin or 0)) as tracing:
            others = [Tracker(config, workdir, begin)] if writes and config.train.wandb_project else []
            with Logs(workdir, begin, others, writes) as logs:
                runner = _Runner(
                    config, parts, names, total, per_epoch, optimizer, rate, data, checkpoints, logs, tracing
                )
                return runner.run(state)


class _Runner:
    """The loop itself, over what `train` has set up."""

    def __init__(
        self,
        config: Config,
        parts: Parts,
        names,
        total,
        per_epoch,
        optimizer,
        rate,
        data,
        checkpoints,
        logs,
        profile,
    ):
        self.config, self.parts, self.names, self.total = config, parts, names, total
        self.rate, self.data, self.checkpoints, self.logs = rate, data, checkpoints, logs
        self.profile, self.speed = profile, Speed(list(parts.devices.devices.flat))
        self.step = make_train_step(parts.graph, config, optimizer, total, parts.devices)
        self.evaluator = Evaluator(config, parts)
        self.eval_every = max(1, round(config.train.eval_every_epochs * per_epoch))

    def run(self, state: states.State) -> dict[str, Any]:
        settings, done = self.config.train, int(state.step)
        every = settings.checkpoint_every_steps
        key = jax.random.key(settings.seed)
        result, pending = None, []
        with Progress("train", self.total, settings.batch_size, done) as bar, self.speed, Stop() as stop:
            for i in range(done + 1, self.total + 1):
                self.profile.before(i)
                with self.speed.waiting():
                    batch = next(self.data)
                state, metrics = self.step(state, mesh.put(batch, self.parts.devices), key)
                self.speed.dispatched(metrics)
                self.profile.after(metrics)
                pending.append(metrics)
                evaluates = i % self.eval_every == 0 or i == self.total
                asked = stop.asked  # once a step: it may change at any moment
                saves = evaluates or asked or (every and i % every == 0)
                # A checkpoint comes after a log: no loss that isn't finite gets that far, and a run that
                # goes on from it has no step left to log.
                if i % settings.log_every_steps == 0 or saves:
                    self._log(i, pending, bar)
                    pending = []
                if evaluates:
                    result = self._evaluate(i, state)
                elif saves:
                    self._save(i, state, None)
                if not pending:
                    self.speed.start()
                if asked:
                    _log.info("%s: saved after step %d of %d", asked.name, i, self.total)
                    raise KeyboardInterrupt if asked == signal.SIGINT else SystemExit(0)
        return result

    def _log(self, step: int, pending: list[Metrics], bar: Progress) -> None:
        total, *rest = jax.device_get(pending)
        for metrics in rest:
            total = total.merge(metrics)
        figures = total.compute()
        self._check_loss(step, figures["loss"])
        loss = self.config.loss
        weight = flops_weight_at(step - 1, self.total, loss.flops_weight, loss.flops_warmup)
        rates = {"learning_rate": float(self.rate(step - 1)), "flops_weight": float(weight)}
        speed = self.speed.figures(figures["clips"])
        self.logs.write(step, "train", {**figures, **rates, "speed": speed})
        bar.update(figures["loss"], figures["top1"], figures["gmacs_per_clip"], steps=len(pending))

    def _evaluate(self, step: int, state: states.State) -> dict[str, Any]:
        unreadable = len(self.data.bad)  # since this process began to train, in its own share of the data
        result = {"step": step, "unreadable_train": unreadable}
        result |= self.evaluator(state.params, state.stats)
        self._check_loss(step, result["loss"])
        self.logs.write(step, "val", {k: v for k, v in result.items() if k != "step"})
        self._save(step, state, result)
        return result

    def _check_loss(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"step {step}: expected a finite loss, found {loss}; a lower "
                f"config.optimizer.learning_rate (now {self.config.optimizer.learning_rate}) may help"
            )

    def _save(self, step: int, state: states.State, result: dict[str, Any] | None) -> None:
        # Before the efficiency weight is full a net is dearer than it will be, and may score higher: it
        # would stay the best for good.
        comparable = step >= self.config.loss.flops_warmup[1] * self.total
        top1 = result["top1"] if result and comparable else None
        self.checkpoints.save(step, state, meta(self.config, self.names, result), self.data.get_state(), top1)
