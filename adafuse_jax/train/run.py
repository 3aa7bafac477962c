"""What training and evaluation of a config share: the model, the devices, the data and the optimiser."""

import dataclasses
import logging
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

import adafuse_jax
from adafuse_jax.config import Config
from adafuse_jax.errors import UserError
from adafuse_jax.input import paths, pipeline, views
from adafuse_jax.layers import set_norm_groups
from adafuse_jax.models.recognizer import Recognizer
from adafuse_jax.models.zoo import create_model, options_of
from adafuse_jax.train import evaluate, hosts, mesh
from adafuse_jax.train import state as states
from adafuse_jax.train.checkpoint import Checkpoints
from adafuse_jax.train.logs import Progress
from adafuse_jax.train.optim import make_optimizer
from adafuse_jax.train.step import make_eval_step
from adafuse_jax.weights import files, fit

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Parts:
    """A model taken apart, and where it runs."""

    model: Recognizer
    graph: nnx.GraphDef
    params: states.Tree
    stats: states.Tree
    devices: Mesh


def build(config: Config, devices: list[jax.Device] | None = None) -> Parts:
    """The model of a config with its initial weights, on all devices.

    Raises:
        UserError: for an unknown model, a bad option, or a batch that the devices can't share evenly.
    """
    grid = mesh.make(devices)
    mesh.check_batch("config.train.batch_size", config.train.batch_size, grid, config.train.accumulate)
    mesh.check_batch("config.train.eval_batch_size", config.train.eval_batch_size, grid)
    model = make_model(config)
    clips, together = config.train.norm_clips, config.train.batch_size // config.train.accumulate
    set_norm_groups(model, together // clips if clips else 1)
    graph, params, stats = states.take_apart(model)
    return Parts(model, graph, params, stats, grid)


def make_model(config: Config) -> Recognizer:
    """The config's model with the weights of its seed."""
    options = dict(config.model.options)
    if "num_frames" in options_of(config.model.name):
        options.setdefault("num_frames", config.data.num_frames)
    if config.train.precision != "float32":
        options.setdefault("dtype", config.train.precision)
    return create_model(
        config.model.name, num_classes=config.data.num_classes, seed=config.train.seed, **options
    )


def start(config: Config, parts: Parts) -> Parts:
    """The model with the weights of `config.train.init_from`, if any, in place of the initial ones.

    Policy networks and classifier keep their initial values where those weights have none that fit.

    Raises:
        UserError: for weights that can't be read, don't fit or want another input than the config's.
    """
    path = config.train.init_from
    if not path:
        return parts
    found = files.read(path)
    if found.card:
        found.card.check(config.data, f"weights {path}")
    fitted = fit.fit(parts.model, found.arrays, ("policy", "head"))
    fit.fill(fitted)
    _log.info("%s: %d arrays, %d more start anew", path, len(fitted.matches), len(fitted.missing))
    _, params, stats = states.take_apart(parts.model)
    return dataclasses.replace(parts, params=params, stats=stats)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint, or converted weights, that are ready to use.

    Attributes:
        config: of the run that wrote it.
        class_names: in label order.
        step: steps done.
        path: of the checkpoint.
        parts: of the model, with the trained weights.
    """

    config: Config
    class_names: list[str]
    step: int
    path: Path
    parts: Parts


def load(directory: Path, which: str = "best", config: Config | None = None) -> Trained:
    """Reads a run's checkpoint: the averaged weights where it has them (`config.train.ema_decay`).

    Args:
        directory: the run's workdir or the checkpoints folder in it, or what `adafuse convert` wrote.
        which: "best" or "latest".
        config: to use the weights with; None: the one that the checkpoint brings.

    Raises:
        UserError: where there is no checkpoint, one that can't be read, or one of another model than
            the config's.
    """
    if directory.is_file() or (directory / files.FILE).exists():
        return _load_converted(directory, config)
    with Checkpoints(directory, write=False) as checkpoints:
        found = checkpoints.read_meta(which)
        saved = Config.from_dict(found["config"])
        config = config or saved
        _check_same_options(checkpoints.directory, saved, config)
        grid = mesh.make()
        model = make_model(config)
        graph, params, stats = states.take_apart(model)
        # Its state comes along, so it is the run's optimiser, whatever the config's; the lengths of the
        # schedule don't matter to the shape.
        optimizer = make_optimizer(saved.optimizer, params, 1, sys.maxsize)
        like = jax.eval_shape(lambda: states.initial(params, stats, optimizer, saved.train.ema_decay))
        like = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=mesh.replicated(grid)), like
        )
        restore = checkpoints.restore_best if which == "best" else checkpoints.restore_latest
        restored = restore(like, config.model.name)
    state = restored.state
    params, stats = state.ema or (state.params, state.stats)
    return Trained(
        config,
        found["class_names"],
        restored.step,
        checkpoints.directory / str(restored.step),
        Parts(model, graph, params, stats, grid),
    )


def _load_converted(path: Path, config: Config | None) -> Trained:
    arrays, card = files.read(path)
    if card is None:
        raise UserError(f"weights {path}: expected a card, as adafuse convert writes it, found none")
    saved = Config.from_dict({"model": {"name": card.model, **card.options}})
    saved = dataclasses.replace(saved, data=card.apply(saved.data))
    if config is not None:
        card.check(config.data, f"weights {path}")
        ours = (config.model.name, config.data.num_classes)
        if ours != (card.model, card.num_classes):
            raise UserError(
                f"weights {path}: expected {ours[0]!r} with {ours[1]} classes, found {card.model!r} with "
                f"{card.num_classes}"
            )
        _check_same_options(path, saved, config)
    config = config or saved
    model = fit.from_torch(make_model(config), arrays)
    graph, params, stats = states.take_apart(model)
    names = list(card.class_names) or [str(i) for i in range(card.num_classes)]
    return Trained(config, names, 0, path, Parts(model, graph, params, stats, mesh.make()))


def _check_same_options(path: Path, saved: Config, config: Config) -> None:
    # The arrays don't tell all: online and bidirectional shift, say, have the same.
    ours, theirs = config.model.options, saved.model.options
    for name in sorted(ours.keys() | theirs.keys()):
        if config.model.name == saved.model.name and ours.get(name) != theirs.get(name):
            raise UserError(
                f"checkpoint {path}: expected config.model.{name}={theirs.get(name)!r}, as it was trained "
                f"with, found {ours.get(name)!r}"
            )


class Evaluator:
    """Evaluates parameters on the validation clips of a config; compiled once.

    Args:
        config: of the run.
        parts: of its model.
    """

    def __init__(self, config: Config, parts: Parts):
        self._config, self._parts = config, parts
        self._step = make_eval_step(parts.graph, config, parts.devices)

    def __call__(
        self, params: states.Tree, stats: states.Tree, before_each: Callable[[], None] = lambda: None
    ) -> evaluate.Result:
        """`evaluate.evaluate`, and `unreadable`: clips that couldn't be read (they count nowhere).

        MACs per clip, spent and dense, are those of all its views. `before_each` batch something may be done,
        such as to raise.
        """
        config = self._config
        batches = pipeline.make_eval(config, batch_size=config.train.eval_batch_size, **mesh.processes())
        key = jax.random.key(config.train.seed) if config.train.eval_sampled else None
        size = config.train.eval_batch_size
        with Progress(
            "eval", math.ceil(batches.num_clips / size), size, delay=10.0, write=hosts.writes()
        ) as bar:
            shown = _each_shown(batches, bar, before_each)
            result = evaluate.evaluate(self._step, params, stats, shown, self._parts.devices, key)
        frame = self._parts.model.count((config.data.image_size,) * 2)
        dense = frame.dense * config.data.num_frames * views.count(config.data) / 1e9
        unreadable = batches.num_clips - round(result["clips"])  # by all processes
        return {**result, "dense_gmacs_per_clip": dense, "unreadable": unreadable}


def _each_shown(
    batches: pipeline.Batches, bar: Progress, before_each: Callable[[], None]
) -> Iterator[pipeline.Batch]:
    for batch in batches:
        before_each()
        yield batch
        bar.update()


def evaluate_checkpoint(config: Config, directory: Path, which: str = "best") -> evaluate.Result:
    """Evaluates a run's checkpoint on the validation clips of `config`; see `load` and `Evaluator`."""
    paths.check(config.data, ("val",))
    mesh.check_batch("config.train.eval_batch_size", config.train.eval_batch_size, mesh.make())
    trained = load(directory, which, config)
    result = Evaluator(config, trained.parts)(trained.parts.params, trained.parts.stats)
    return {"step": trained.step, **result}


def meta(config: Config, class_names: list[str], metrics: dict[str, Any] | None) -> dict[str, Any]:
    """What a checkpoint carries beside its arrays, so that it can be used without its config file."""
    return {
        "model": config.model.name,
        "config": config.to_dict(),
        "class_names": class_names,
        "metrics": metrics,
        "version": adafuse_jax.__version__,
    }
