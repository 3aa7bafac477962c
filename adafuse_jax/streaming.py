"""A model on streams: one frame at a time, in constant memory, with the results of the clip model.

    stream = Stream(model)
    state = stream.init(batch=2)
    for frame in frames:  # normalised floats, (B, H, W, 3)
        state, out = stream(state, frame)  # out.logits: the mean over the frames so far

What a model remembers of the frame before, (v_{t-1}, y_{t-1}) at each fusion site (paper, section 3) and the
shifted channels of online TSM, is the state; all of it is zero before the first frame, as in a clip.
"""

import dataclasses
from collections import OrderedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from adafuse_jax.compact import Block, check_execution, compacted
from adafuse_jax.errors import UserError
from adafuse_jax.kernels.block import Before, before_first, compact_step, one_hot
from adafuse_jax.layers import TemporalFusion
from adafuse_jax.models.recognizer import Output, Recognizer
from adafuse_jax.models.resnet import ResidualBlock
from adafuse_jax.models.sites import RandomPolicy
from adafuse_jax.ops import lstm
from adafuse_jax.ops.shift import online_shift_step

SHIFT_DIV = 8  # as `ops.shift.online_shift`


class _Carry(nnx.Variable):
    """What goes on to the next frame; a scalar stands for "as before the first frame"."""


def _empty() -> _Carry:
    return _Carry(jnp.zeros(()))


class _Fusion(nnx.Module):
    """A `TemporalFusion` on clips of one frame."""

    def __init__(self, fusion: TemporalFusion):
        self.fusion, self.v, self.y = fusion, _empty(), _empty()

    def __call__(self, x, y, key=None, train=False):
        x, y = x[:, 0], y[:, 0]
        carry = (self.v[...], self.y[...]) if self.v.ndim else self.fusion.initial_carry(x, y)
        (v, y), (fused, chosen) = self.fusion.step(carry, x, y, key)
        self.v.set_value(v)
        self.y.set_value(y)
        return fused[:, None], chosen[:, None]


class _Shift(nnx.Module):
    """The online shift on clips of one frame."""

    def __init__(self):
        self.before = _empty()

    def __call__(self, x):
        x = x[:, 0]
        first = x[..., : x.shape[-1] // SHIFT_DIV]
        before = self.before[...] if self.before.ndim else jnp.zeros_like(first)
        first, shifted = online_shift_step(before, x)
        self.before.set_value(first)
        return shifted[:, None]


class _Block(nnx.Module):
    """A compact block on clips of one frame."""

    def __init__(self, block: Block):
        self.block, self.v, self.before = block, _empty(), _empty()

    def __call__(self, x, shortcut, key=None, train=False):
        block, weights = self.block, self.block.weights.get_value()
        v, actions = block.decide(x, self.v[...] if self.v.ndim else None)
        before = self.before.get_value()
        if not isinstance(before, Before):
            before = before_first(x[:, 0], weights)
        before, out, averages = compact_step(x[:, 0], weights, actions[:, 0], before, shortcut[:, 0])
        block.averages = None if averages is None else averages[:, None]
        self.v.set_value(v[:, 0])
        self.before.set_value(before)
        return out[:, None], one_hot(actions, block.actions)


class _LSTM(nnx.Module):
    """An LSTM on clips of one frame."""

    def __init__(self, rnn: nnx.Module):
        self.rnn, self.h, self.c = rnn, _empty(), _empty()

    def __call__(self, x):
        zeros = jnp.zeros((len(x), self.rnn.features), jnp.promote_types(x.dtype, jnp.float32))
        state = (self.h[...], self.c[...]) if self.h.ndim else (zeros, zeros)
        h, c = lstm.step(state, x[:, 0].astype(zeros.dtype), self.rnn.weights)
        self.h.set_value(h)
        self.c.set_value(c)
        return h[:, None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Of a batch of streams.

    Attributes:
        carry: what the model remembers of the frame before, one array after the other.
        total: sum of the frame logits so far, (B, num_classes).
        frames: number of frames so far, (B,).
    """

    carry: tuple[Array, ...]
    total: Float[Array, "b classes"]
    frames: Float[Array, " b"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StreamOutput:
    """What a model says after a frame.

    Attributes:
        logits: the mean over the frames so far, (B, num_classes).
        frame_logits: of this frame, (B, num_classes).
        policies: {site: one-hot (B, channels, actions)} of this frame.
    """

    logits: Float[Array, "b classes"]
    frame_logits: Float[Array, "b classes"]
    policies: OrderedDict[str, Float[Array, "b c actions"]]


class Stream:
    """A model, frame by frame, with running statistics and the likeliest actions.

    Calls are pure functions of (state, frame), compiled once a shape; one `Stream` may serve any number of
    states.

    Args:
        model: of the zoo; it isn't changed.
        execution: "dense", or "compact": what the policies leave out isn't computed, on the CPU (see
            `compact.Compact`); a channel that is reused and wasn't computed at the frame before is then.

    Attributes:
        execution: what runs: "dense" also where "compact" can't.

    Raises:
        UserError: for a model that needs frames to come, or all frames at once; for another execution, or a
            model that can't be run compactly.
    """

    def __init__(self, model: Recognizer, execution: str = "dense"):
        check_execution(execution)
        _check(model)
        streaming = compacted(model) if execution == "compact" else None
        self.execution = "dense" if streaming is None else "compact"
        if streaming is None:
            streaming = nnx.clone(model)
        for _, module in list(nnx.iter_modules(streaming)):
            if isinstance(module, ResidualBlock) and module.executed is not None:
                module.executed, module.fusion = _Block(module.executed), None
            if isinstance(getattr(module, "fusion", None), TemporalFusion) and not isinstance(
                module, _Fusion
            ):
                module.fusion = _Fusion(module.fusion)
            if isinstance(module, ResidualBlock) and module.shift is not None:
                module.shifter = _Shift()
        if streaming.rnn is not None:
            streaming.rnn = _LSTM(streaming.rnn)
        self.num_classes = model.num_classes
        self._graph, self._empty, weights = nnx.split(streaming, _Carry, ...)
        # Between calls all arrays are in tuples, which JAX takes apart sooner than models.
        weights, self._of_weights = jax.tree.flatten(jax.device_put(weights))  # once, not at each call
        self._weights, self._of_carry = tuple(weights), None
        self._jitted = jax.jit(self.step)

    @property
    def weights(self) -> tuple[Array, ...]:
        """All arrays of the model, the first argument of `step`."""
        return self._weights

    def init(self, batch: int, image_size: int | tuple[int, int] = 224, dtype=jnp.float32) -> State:
        """The state before the first frame.

        Args:
            batch: number of streams.
            image_size: pixels, the side of a square or (height, width).
            dtype: of the frames.
        """
        hw = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        frame = jax.ShapeDtypeStruct((batch, *hw, 3), dtype)
        carry, _ = jax.eval_shape(self._run, self._weights, self._empty, frame)
        carry, self._of_carry = jax.tree.flatten(carry)
        carry = tuple(jnp.zeros(a.shape, a.dtype) for a in carry)
        return State(carry, jnp.zeros((batch, self.num_classes)), jnp.zeros(batch))

    def __call__(self, state: State, frame: Float[Array, "b h w 3"]) -> tuple[State, StreamOutput]:
        """Takes a frame of each stream.

        Args:
            state: from `init` or the call before.
            frame: normalised, of the size and type that `init` was told.

        Raises:
            UserError: for a frame of another rank or number of streams.
        """
        if frame.ndim != 4 or frame.shape[-1] != 3 or len(frame) != len(state.frames):
            raise UserError(f"frame: expected ({len(state.frames)}, H, W, 3), found {frame.shape}")
        return self._jitted(self._weights, state, frame)

    def reset(self, state: State, streams: Bool[Array, " b"]) -> State:
        """Starts some streams of a batch anew: those where `streams` is True."""
        return jax.tree.map(
            lambda a: jnp.where(jnp.expand_dims(streams, tuple(range(1, a.ndim))), jnp.zeros_like(a), a),
            state,
        )

    def step(
        self, weights: tuple[Array, ...], state: State, frame: Float[Array, "b h w 3"]
    ) -> tuple[State, StreamOutput]:
        """One frame as a pure function of the weights too, for transformations and export."""
        if self._of_carry is None:  # a state of another `Stream` of the model
            self.init(len(frame), frame.shape[1:3], frame.dtype)
        carry, out = self._run(weights, jax.tree.unflatten(self._of_carry, state.carry), frame)
        total, frames = state.total + out.frame_logits[:, 0], state.frames + 1
        policies = type(out.policies)((site, policy[:, 0]) for site, policy in out.policies.items())
        return State(tuple(jax.tree.leaves(carry)), total, frames), StreamOutput(
            total / frames[:, None], out.frame_logits[:, 0], policies
        )

    def _run(
        self, weights: tuple[Array, ...], carry: nnx.State, frame: Float[Array, "b h w 3"]
    ) -> tuple[nnx.State, Output]:
        model = nnx.merge(self._graph, carry, jax.tree.unflatten(self._of_weights, weights))
        out = model(frame[:, None])
        return nnx.state(model, _Carry), out


def _check(model: Recognizer) -> None:
    name = getattr(model, "name", type(model).__name__)
    if not isinstance(model, Recognizer) or model.relations is not None:
        raise UserError(f"stream: expected a model that classifies every frame, found {name!r}")
    for _, module in nnx.iter_modules(model):
        if isinstance(module, ResidualBlock) and module.shift == "tsm":
            raise UserError(
                f"stream: expected a model that looks back alone, found {name!r}, whose shift takes channels "
                "from the frame to come; shift='online' doesn't"
            )
        if isinstance(module, RandomPolicy):
            raise UserError(
                f"stream: expected policies that depend on the frames, found {name!r}'s random ones"
            )
