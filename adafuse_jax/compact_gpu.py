"""What of a model runs compactly on a GPU: the residual blocks where that was measured to be faster.

Each block with fusion is timed on the GPU as it is; with all computed and the norms folded into its first two
convolutions, so that compact execution doesn't win by that alone; and with these two by `kernels.pallas_pair`
in several tilings. On maps of the real sizes, with the policies that the model finds for a clip, since what
they leave out is what can be saved. Where dense wins, dense runs. All this is tested on CPUs alone: no GPU
has made a choice by it yet.
"""

import functools
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from adafuse_jax.kernels.block import codes
from adafuse_jax.kernels.pallas_pair import Tile, compact_pair, pack_pair
from adafuse_jax.models.folded import folded
from adafuse_jax.models.recognizer import Recognizer
from adafuse_jax.models.resnet import ResidualBlock, per_frame
from adafuse_jax.ops import fusion

DENSE, FOLDED = "dense", "folded"  # all is computed
TILES = {  # pixels x outputs x inputs
    "64x64x32": Tile(64, 64, 32),
    "64x64x64": Tile(64, 64, 64),
    "128x64x64": Tile(128, 64, 64),
    "128x128x64": Tile(128, 128, 64, warps=8),
}
_log = logging.getLogger(__name__)
_REPEATS, _TURNS = 10, 7  # of a block in one call, and of calls

# Given ways to run a block, which wait for nothing, gives the seconds of each.
Measure = Callable[[Mapping[str, Callable[[], Any]]], dict[str, float]]


class Choice(NamedTuple):
    """How a block runs.

    Attributes:
        seconds: as measured, {"dense", "folded", or one of `TILES`: of the block on all clips}.
    """

    seconds: dict[str, float]

    @property
    def way(self) -> str:
        """The fastest; of equals dense."""
        return min(self.seconds, key=lambda way: (self.seconds[way], way != DENSE))

    @property
    def compact(self) -> bool:
        """Whether what the policies leave out isn't computed."""
        return self.way not in (DENSE, FOLDED)


class _Weight(nnx.Variable):
    """Kernels and biases."""


class Folded(nnx.Module):
    """In place of `ResidualBlock.pair`: all computed, by running statistics and without a gradient."""

    def __init__(self, block: ResidualBlock):
        self.fusion, self.dtype = block.fusion, dtype_of(block.conv1)
        self.strides = tuple(stride for _, stride in block.geometry[:2])
        convs = *folded(block.conv1, block.bn1), *folded(block.conv2, block.bn2)
        self.weights = _Weight(tuple(jnp.asarray(array, self.dtype) for array in convs))

    def __call__(
        self, x: Float[Array, "b t h w i"], key: Key[Array, ""] | None = None, train: bool = False
    ) -> tuple[Float[Array, "b t y x m"], Float[Array, "b t c actions"]]:
        """As `ResidualBlock.pair`."""
        kernel1, bias1, kernel2, bias2 = self.weights.get_value()
        y = jax.nn.relu(self._conv(x.astype(self.dtype), kernel1, self.strides[0]) + bias1)
        y, policy = self.fusion(x, y, key, train)
        return self._conv(y, kernel2, self.strides[1]) + bias2, policy

    def _conv(self, x, kernel, stride):
        padding = ((len(kernel) // 2,) * 2,) * 2
        dimensions = ("NHWC", "HWIO", "NHWC")
        conv = functools.partial(
            jax.lax.conv_general_dilated,
            rhs=kernel,
            window_strides=(stride, stride),
            padding=padding,
            dimension_numbers=dimensions,
        )
        return per_frame(conv, x)


class Pair(nnx.Module):
    """In place of `ResidualBlock.pair`: what the policies ask for, otherwise as `Folded`."""

    def __init__(self, block: ResidualBlock, tile: Tile):
        self.fusion, self.actions = block.fusion, block.fusion.actions
        self.width, self.tile = block.width, tile
        self.strides = tuple(stride for _, stride in block.geometry[:2])
        self.dtype = dtype_of(block.conv1)
        convs = *folded(block.conv1, block.bn1), *folded(block.conv2, block.bn2)
        self.weights = _Weight(pack_pair(*convs, self.dtype))

    def __call__(
        self, x: Float[Array, "b t h w i"], key: Key[Array, ""] | None = None, train: bool = False
    ) -> tuple[Float[Array, "b t y x m"], Float[Array, "b t c actions"]]:
        """As `ResidualBlock.pair`."""
        # Neither a policy network nor a random policy looks at the map that it decides on.
        unseen = jnp.zeros((*x.shape[:2], self.width))
        _, policy = self.fusion(x, unseen, key, train)
        actions, x = codes(policy, self.actions), x.astype(self.dtype)
        return compact_pair(x, self.weights.get_value(), actions, self.strides, self.tile), policy


class _Given(nnx.Module):
    """A decider that has decided."""

    def __init__(self, policy: Float[Array, "b t c actions"], actions: tuple[str, ...]):
        self.policy, self.actions = nnx.Variable(policy), actions

    def __call__(self, x, y, key=None, train=False):
        return fusion.fuse_clip(self.policy[...], y, self.actions), self.policy[...]


def compacted(
    model: Recognizer, clip: Float[Array, "b t h w 3"], measure: Measure
) -> tuple[Recognizer, dict[str, Choice]]:
    """A copy of the model whose blocks run compactly where that is faster, and the choices by site.

    Args:
        model: a ResNet with fusion, in float32 or bfloat16.
        clip: normalised frames: what runs is chosen for clips of this shape, and by this one's policies.
        measure: as `seconds`.
    """
    graph, state = nnx.split(model)
    policies = jax.jit(lambda state, clip: nnx.merge(graph, state)(clip).policies)(state, clip)
    copy = nnx.clone(model)
    hw = jax.eval_shape(lambda clip: model.backbone.entry(clip, False), clip).shape[2:4]
    choices = {}
    for name, block in copy.backbone.named_blocks():
        if block.fusion is not None:
            choice = Choice(measure(_ways(block, policies[name], hw)))
            choices[name] = choice
            if choice.way != DENSE:
                block.paired = _paired(block, choice.way)
                block.conv1 = block.bn1 = block.conv2 = block.bn2 = None
        hw = block.count(hw)[2]
    return copy, choices


def dtype_of(conv: nnx.Conv) -> jnp.dtype:
    """What a convolution computes in."""
    return jnp.dtype(conv.kernel[...].dtype if conv.dtype is None else conv.dtype)


def seconds(runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """The median seconds of each run by turns; all run once before, to be compiled.

    What a GPU can't run, as it has less shared memory than a tiling takes, takes forever.
    """
    taken = {}
    for name, run in runs.items():
        try:
            jax.block_until_ready(run())
            taken[name] = []
        except jax.errors.JaxRuntimeError as error:
            if name == DENSE:
                raise
            _log.info("compact execution: %s can't run here: %s", name, str(error).partition("\n")[0])
    for _ in range(_TURNS):
        for name, times in taken.items():
            start = time.perf_counter()
            jax.block_until_ready(runs[name]())
            times.append((time.perf_counter() - start) / _REPEATS)
    return {name: statistics.median(taken[name]) if name in taken else math.inf for name in runs}


def _paired(block: ResidualBlock, way: str) -> Folded | Pair:
    return Folded(block) if way == FOLDED else Pair(block, TILES[way])


def _ways(
    block: ResidualBlock, policy: Float[Array, "b t c actions"], hw: tuple[int, int]
) -> dict[str, Callable[[], Array]]:
    """Ways to run a block `_REPEATS` times, its policy given."""
    shape = (*policy.shape[:2], *hw, block.in_features)
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32), dtype_of(block.conv1))
    runs = {}
    for way in (DENSE, FOLDED, *TILES):
        tried = nnx.clone(block)
        tried.fusion = _Given(policy, block.fusion.actions)
        if way != DENSE:
            tried.paired = _paired(tried, way)
        graph, state = nnx.split(tried)
        runs[way] = functools.partial(_repeated, graph, state, x)
    return runs


@functools.partial(jax.jit, static_argnums=0)  # blocks of the same sizes are compiled once
def _repeated(graph: nnx.GraphDef, state: nnx.State, x: Float[Array, "b t h w i"]) -> Float[Array, ""]:
    """A block again and again on the device: a call of one alone would be the host's time."""

    def step(_, before):
        # No step may begin before the last one ends, and nothing of it can be done once for all.
        its, of, _ = jax.lax.optimization_barrier((state, x, before))
        out, _ = nnx.merge(graph, its).convolved(of, of, None, False)
        return jax.lax.optimization_barrier(out).ravel()[0].astype(jnp.float32)

    return jax.lax.fori_loop(0, _REPEATS, step, jnp.zeros(()))
