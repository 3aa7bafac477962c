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
from adafuse_jax.train import faults, hosts, mesh, preflight, record
from adafuse_jax.train import state as states
from adafuse_jax.train.checkpoint import FOLDER, Checkpoints, Restored, holds_checkpoint
from adafuse_jax.train.logs import Logs, Progress
from adafuse_jax.train.losses import flops_weight_at
from adafuse_jax.train.optim import make_optimizer, schedule
from adafuse_jax.train.profile import FOLDER as PROFILE_FOLDER
from adafuse_jax.train.profile import Profile
from adafuse_jax.train.run import Evaluator, build, meta, start
from adafuse_jax.train.speed import Speed
from adafuse_jax.train.step import make_train_step
from adafuse_jax.train.stop import Stop
from adafuse_jax.train.tracker import Tracker
from adafuse_jax.train.window import EMPTY, Window
from adafuse_jax.train.workdir import claim

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
            set share, weights or a loss that stay useless, a device without memory, a full disk.
        KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM, once the step under way is saved.
    """
    with Stop() as stop, faults.told(config):
        preflight.check(config, workdir, devices)
        runner = _Runner(config, workdir, devices, stop)
        with claim(workdir, config), Checkpoints(workdir / FOLDER) as checkpoints:
            if hosts.writes():
                record.add(workdir, config, list(runner.parts.devices.devices.flat))
            restored = runner.restore(checkpoints)
            begin = restored.step if restored else 0
            if restored and begin == runner.total and restored.meta["metrics"]:
                _log.info("this run was finished before; nothing is left to train")
                return restored.meta["metrics"]
            steps = profile if hosts.writes() else None
            wanted = hosts.writes() and config.train.wandb_project
            others = [Tracker(config, workdir, begin or None)] if wanted else []
            with (
                Profile(steps, workdir / PROFILE_FOLDER, runner.total - begin) as tracing,
                Logs(workdir, begin or None, others, hosts.writes()) as logs,
            ):
                return runner.run(checkpoints, logs, tracing, restored)


class _Runner:
    """A run: its lists and data, read before its model is built, and its loop over them."""

    def __init__(self, config: Config, workdir: Path, devices: list[jax.Device] | None, stop: Stop):
        self.config, self.stop = config, stop
        per_epoch = pipeline.steps_per_epoch(config, config.train.batch_size)
        self.total = max(1, round(config.train.epochs * per_epoch))
        self.eval_every = max(1, round(config.train.eval_every_epochs * per_epoch))
        self.data = pipeline.make_train(
            config, batch_size=config.train.batch_size, seed=config.train.seed, **mesh.processes()
        )
        sources.make_source(config, "val")  # a list that can't be used stops the run now, not after an epoch
        self.names = sources.class_names(config.data)
        parts = build(config, devices)
        self.optimizer = make_optimizer(config.optimizer, parts.params, per_epoch, self.total)
        self.rate = schedule(config.optimizer, per_epoch, self.total)
        self.parts = parts if holds_checkpoint(workdir / FOLDER) else start(config, parts)
        self.state = jax.device_put(
            states.initial(self.parts.params, self.parts.stats, self.optimizer, config.train.ema_decay),
            mesh.replicated(self.parts.devices),
        )
        self.workdir, self.agreed = workdir, hosts.Agreement(self.parts.devices)
        self.window = Window(config.train.max_skipped_steps)

    def restore(self, checkpoints: Checkpoints) -> Restored | None:
        """Takes over state and position in the data of the latest checkpoint, if there is one."""
        restored = checkpoints.restore_latest(self.state, self.config.model.name)
        if restored is None:
            return None
        self.state = restored.state
        self.data.set_state(restored.data)
        self.window.set_state(restored.data.get("window", EMPTY))
        _log.info("going on from step %d of %d in %s", restored.step, self.total, self.workdir)
        if restored.step > self.total:
            raise UserError(
                f"workdir {self.workdir}: expected a run of at most {self.total} steps, found one of "
                f"{restored.step}; have the clips of config.data.train_list changed?"
            )
        return restored

    def run(
        self, checkpoints: Checkpoints, logs: Logs, profile: Profile, restored: Restored | None
    ) -> dict[str, Any]:
        """All steps that are left after those of the checkpoint `restored`, or all."""
        self.checkpoints, self.logs = checkpoints, logs
        self.evaluator, self.speed = (
            Evaluator(self.config, self.parts),
            Speed(list(self.parts.devices.devices.flat)),
        )
        train_step = make_train_step(
            self.parts.graph, self.config, self.optimizer, self.total, self.parts.devices
        )
        settings, state = self.config.train, self.state
        self.state = None  # its arrays are given away step by step
        done, every = int(state.step), settings.checkpoint_every_steps
        key = jax.random.key(settings.seed)
        result, shown = None, done
        progress = Progress("train", self.total, settings.batch_size, done, write=hosts.writes())
        with progress as bar, self.speed:
            # An evaluation that was stopped in the middle comes first.
            if restored and self._evaluates(done) and not restored.meta["metrics"]:
                result = self._evaluate(done, state)
            for i in range(done + 1, self.total + 1):
                profile.before(i)
                with self.speed.waiting():
                    batch = next(self.data)
                state, metrics = train_step(state, mesh.put(batch, self.parts.devices), key)
                self.speed.dispatched(metrics)
                profile.after(metrics)
                self.window.add(i, metrics)
                asked = self.agreed(self.stop.asked or 0)  # once a step: it may change at any moment
                logged = i % settings.log_every_steps == 0 or self._evaluates(i)
                if logged:
                    figures = self._log(i, steps=i - shown)
                    shown_figures = (figures.get(name) for name in ("loss", "top1", "gmacs_per_clip"))
                    bar.update(*shown_figures, steps=i - shown)
                    shown = i
                if asked:
                    self._leave(i, state, asked)
                elif self._evaluates(i):
                    result = self._evaluate(i, state)
                elif every and i % every == 0:
                    self._save(i, state, None)
                if logged:
                    self.speed.start()
        return result

    def _evaluates(self, step: int) -> bool:
        return step > 0 and (step % self.eval_every == 0 or step == self.total)

    def _leave(self, step: int, state: states.State, asked: int) -> None:
        """Saves and ends: by SystemExit(0), or after Ctrl-C by KeyboardInterrupt."""
        self._save(step, state, None, at_once=True)
        self.checkpoints.wait()
        _log.info("%s: saved after step %d of %d", signal.Signals(asked).name, step, self.total)
        raise KeyboardInterrupt if asked == signal.SIGINT else SystemExit(0)

    def _log(self, step: int, steps: int) -> dict[str, Any]:
        total, loss = self.window.take(), self.config.loss
        weight = flops_weight_at(step - 1, self.total, loss.flops_weight, loss.flops_warmup)
        figures = total.compute() if total.clips else {"clips": 0.0}  # all of them skipped
        figures |= {"learning_rate": float(self.rate(step - 1)), "flops_weight": float(weight)}
        figures |= {"skipped_steps": int(total.skipped)}
        figures |= {"speed": self.speed.figures(steps * self.config.train.batch_size)}
        self.logs.write(step, "train", figures)
        return figures

    def _evaluate(self, step: int, state: states.State) -> dict[str, Any]:
        def ask():
            if asked := self.agreed(self.stop.asked or 0):
                self._leave(step, state, asked)

        result = {"step": step, "unreadable_train": len(self._position()["bad"])}
        # The averages are what a checkpoint is used with, so theirs is the result.
        result |= self.evaluator(*(state.ema or (state.params, state.stats)), ask)
        if state.ema:
            raw = self.evaluator(state.params, state.stats, ask)
            result["raw"] = {name: raw[name] for name in ("loss", "top1", "top5", "map", "gmacs_per_clip")}
        if not math.isfinite(result["loss"]):
            raise UserError(
                f"evaluation after step {step}: expected a finite loss, found {result['loss']}; a lower "
                f"config.optimizer.learning_rate (now {self.config.optimizer.learning_rate}) may help"
            )
        self.logs.write(step, "val", {k: v for k, v in result.items() if k != "step"})
        self._save(step, state, result)
        return result

    def _save(
        self, step: int, state: states.State, result: dict[str, Any] | None, at_once: bool = False
    ) -> None:
        # Before the efficiency weight is full a net is dearer than it will be, and may score higher: it
        # would stay the best for good.
        comparable = step >= self.config.loss.flops_warmup[1] * self.total
        top1 = result["top1"] if result and comparable else None
        position = {**self._position(), "window": self.window.get_state()}
        if self.window.skipped_in_a_row and not result and not at_once:
            return  # these weights may be the reason: better keep those before
        if step == self.checkpoints.latest_step():
            if not result:
                return
            self.checkpoints.delete(step)  # saved when its evaluation was stopped; now that is done
        self.logs.check()
        self.checkpoints.save(step, state, meta(self.config, self.names, result), position, top1)

    def _position(self) -> dict[str, Any]:
        """Where the data goes on, and the clips that no process could read so far."""
        position = self.data.get_state()
        return {**position, "bad": hosts.union(position["bad"], self.data.num_clips)}
