"""A model whose policies save time, not MACs alone: what they leave out isn't computed.

    fast = Compact(model)
    out = fast(clip)  # as model(clip)

Of each residual block with fusion, the first convolution computes the channels that are kept, or reused at
the next frame, the second reads those that aren't skipped; reusing a channel copies nothing. On the CPU,
norms, ReLUs and the shortcut are part of the same native call, compiled when it is first used, see
`kernels.build`. On a GPU, blocks run so where that is measured to be faster, see `compact_gpu`. All else runs
as in the model; where there is no native code, and on other devices, the model itself runs.
"""

import functools
import logging
import threading
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int8, Key

from adafuse_jax import compact_gpu
from adafuse_jax.errors import UserError, unknown
from adafuse_jax.kernels import build
from adafuse_jax.kernels.block import codes, compact_block, one_hot, pack_block
from adafuse_jax.kernels.policy import compact_policy, pack_kernels, pack_policy
from adafuse_jax.kernels.stem import compact_stem, pack_stem
from adafuse_jax.layers import TemporalFusion
from adafuse_jax.models.folded import folded
from adafuse_jax.models.recognizer import Output, Recognizer, check_call
from adafuse_jax.models.resnet import ResidualBlock, ResNet, per_frame
from adafuse_jax.models.sites import RandomPolicy

EXECUTIONS = ("dense", "compact")  # everything computed, or what the policies ask for

_log = logging.getLogger(__name__)


class _Weight(nnx.Variable):
    """Laid out for the native code."""


class Block(nnx.Module):
    """In place of `ResidualBlock.convolved`, of a block of a model in float32.

    `pack` is `pack_kernels`, or what remembers its results for the blocks that share a policy network.
    """

    def __init__(self, block: ResidualBlock, pack: Callable[[Array, Array], Array]):
        fusion = block.fusion
        self.actions, self.width = fusion.actions, block.width
        strides = tuple(stride for _, stride in block.geometry[:2])
        third = folded(block.conv3, block.bn3) if len(block.geometry) == 3 else None
        project = block.downsample_conv and folded(block.downsample_conv, block.downsample_bn)
        weights = folded(block.conv1, block.bn1), folded(block.conv2, block.bn2), third, project
        self.weights = _Weight(pack_block(*weights, strides))
        network = isinstance(fusion, TemporalFusion)
        self.network = _Weight(pack_policy(fusion.mlp, fusion.bn.running, pack)) if network else None
        self.random = None if network else fusion
        # The block whose output this one reads as it is, if that gives averages of it, and this one's own.
        self.source: Block | None = nnx.data(None)
        self.averages: Array | None = nnx.data(None)

    def decide(
        self, x: Float[Array, "b t h w i"], v_before: Float[Array, "b i"] | None = None
    ) -> tuple[Float[Array, "b t i"], Int8[Array, "b t c"]]:
        """Of a block with a policy network: see `kernels.policy.compact_policy`."""
        if v_before is None:
            v_before = jnp.zeros((len(x), x.shape[-1]))
        if self.source is not None and self.source.averages is not None:
            x = self.source.averages[:, :, None, None]  # as a map of one pixel: x isn't read again
        return compact_policy(x, v_before, self.network.get_value(), self.width, self.actions)

    def __call__(
        self,
        x: Float[Array, "b t h w i"],
        shortcut: Float[Array, "b t h w i"],
        key: Key[Array, ""] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "b t y x o"], Float[Array, "b t c actions"]]:
        """As `ResidualBlock.convolved`, with running statistics."""
        if self.network is not None:
            _, actions = self.decide(x)
            policy = one_hot(actions, self.actions)
        else:
            # A random policy doesn't look at the map that it decides on.
            _, policy = self.random(x, jnp.zeros((*x.shape[:2], self.width)), key, train)
            actions = codes(policy, self.actions)
        out, self.averages = compact_block(x, self.weights.get_value(), actions, shortcut)
        return out, policy


class _Stem(nnx.Module):
    """In place of `ResNet.entry`, of a model in float32."""

    def __init__(self, backbone: ResNet):
        self.features, self.pool = backbone.stem.features, backbone.stem.max_pool
        self.weights = _Weight(pack_stem(*folded(backbone.conv1, backbone.bn1), stride=2))

    def __call__(self, clip, train=False):
        weights = self.weights.get_value()
        return per_frame(lambda x: compact_stem(x, weights, self.features, 2, self.pool), clip)


class Compact:
    """A model, with its likeliest actions and running statistics, run compactly.

    Calls give what the model gives, up to rounding, as long as nothing overflows: the sums of a convolution
    are added up in another order. They may come from several threads. On a GPU the first call on clips of a
    shape chooses what runs compactly, which takes as long as many calls.

    Args:
        model: a ResNet of the zoo with fusion; it isn't changed, and later changes to it aren't seen.
        measure: what a GPU's choices are made by.

    Attributes:
        native: whether there is code to run it compactly here, or the model runs as it is.

    Raises:
        UserError: for another model, or, except on a GPU, one that doesn't compute in float32.
    """

    def __init__(self, model: Recognizer, measure: compact_gpu.Measure = compact_gpu.seconds):
        self._on_gpu = jax.default_backend() == "gpu"
        self._chosen, self._choosing = {}, threading.Lock()
        if self._on_gpu:
            _check(model)
            self.native, self._measure, self._model = True, measure, nnx.clone(model)
        else:
            executed = compacted(model)
            self.native = executed is not None
            self._run = _jitted(executed if self.native else model)

    def choices(self, clip: Float[Array, "b t h w 3"]) -> dict[str, compact_gpu.Choice]:
        """How each site's block runs on clips of this shape on a GPU; elsewhere there is nothing to choose.

        Measured by the first clip of a shape, with its policies.
        """
        return self._of(clip)[1] if self._on_gpu else {}

    def _of(self, clip):
        key = clip.shape, clip.dtype
        with self._choosing:  # two measurements at once would be wrong
            if key not in self._chosen:
                executed, choices = compact_gpu.compacted(self._model, clip, self._measure)
                self._chosen[key] = _jitted(executed), choices
            return self._chosen[key]

    def __call__(self, clip: Float[Array, "b t h w 3"]) -> Output:
        """Classifies clips.

        Args:
            clip: normalised frames, float32 (on a GPU, any floats).

        Raises:
            UserError: for a clip of another shape or type.
        """
        check_call(clip, None, False)
        if self._on_gpu:
            return self._of(clip)[0](clip)
        if clip.dtype != jnp.float32:
            raise UserError(f"clip: expected float32 for compact execution, found {clip.dtype}")
        return self._run(clip)


def _jitted(model: Recognizer) -> Callable[[Array], Output]:
    graph, weights = nnx.split(model)
    # Moved once, not at each call, and in a tuple, which JAX takes apart sooner than a model.
    arrays, of_weights = jax.tree.flatten(jax.device_put(weights))
    run = jax.jit(lambda arrays, clip: nnx.merge(graph, jax.tree.unflatten(of_weights, arrays))(clip))
    return functools.partial(run, tuple(arrays))


def check_execution(execution: str) -> None:
    """Raises UserError for another than those of `EXECUTIONS`."""
    if execution not in EXECUTIONS:
        raise unknown("execution", execution, EXECUTIONS)


def compacted(model: Recognizer, clip: Float[Array, "b t h w 3"] | None = None) -> Recognizer | None:
    """A copy of the model whose blocks with fusion run compactly; None where native code can't run.

    It takes frames of float32 and its running statistics, and has no gradient.

    Args:
        model: see `Compact`.
        clip: by which a GPU is to choose; without, as for streams, nothing runs compactly there.

    Raises:
        UserError: for another model than `Compact` takes.
    """
    _check(model)
    if clip is not None and jax.default_backend() == "gpu":
        return compact_gpu.compacted(model, clip, compact_gpu.seconds)[0]
    if not _usable():
        return None
    copy = nnx.clone(model)
    copy.backbone.executed = _Stem(copy.backbone)
    copy.backbone.conv1 = copy.backbone.bn1 = None
    packed, source = _once(pack_kernels), None
    for _, block in copy.backbone.named_blocks():
        if block.fusion is not None:
            block.executed = Block(block, packed)
            block.executed.source = source if block.shift is None else None
            # What its weights were in. The fusion stays, to be counted.
            _drop(block, "conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample_conv", "downsample_bn")
            if isinstance(block.fusion, TemporalFusion):
                _drop(block.fusion, "fc0", "fc1", "bn")
        source = block.executed
    return copy


def _drop(module: nnx.Module, *names: str) -> None:
    for name in names:
        if getattr(module, name, None) is not None:
            setattr(module, name, None)


def _once(f: Callable[..., Array]) -> Callable[..., Array]:
    """Does f once for the same arrays."""
    done = {}  # with the arrays: as long as they are kept, none that comes later can have the id of one

    def known(*arrays: Array) -> Array:
        key = tuple(map(id, arrays))
        if key not in done:
            done[key] = arrays, f(*arrays)
        return done[key][1]

    return known


def _usable() -> bool:
    if jax.default_backend() != "cpu":
        _tell(jax.default_backend())
        return False
    return build.load()


@functools.cache  # once is enough
def _tell(backend: str) -> None:
    _log.warning(
        "compact execution%s: for the CPU alone, found %s; everything is computed (dense) instead",
        " of streams" if backend == "gpu" else "",
        backend,
    )


def _check(model: Recognizer) -> None:
    name = getattr(model, "name", type(model).__name__)
    if not isinstance(model, Recognizer) or not isinstance(model.backbone, ResNet):
        raise UserError(f"compact execution: expected a ResNet of the zoo with fusion, found {name!r}")
    blocks = [block for _, block in model.backbone.named_blocks() if block.fusion is not None]
    if not blocks:
        raise UserError(f"compact execution: expected a model with fusion, found {name!r}")
    only_float32 = jax.default_backend() != "gpu"
    for block in blocks:
        if not isinstance(block.fusion, TemporalFusion | RandomPolicy):
            raise UserError(
                "compact execution: expected policies that decide before the map is computed, found "
                f"{type(block.fusion).__name__} in {name!r}"
            )
        for conv in (block.conv1, block.conv2):
            if only_float32 and (dtype := compact_gpu.dtype_of(conv)) != jnp.float32:
                raise UserError(f"compact execution: expected a model of float32, found {name!r} of {dtype}")
