"""A residual block with fusion as one call of native code that computes what is needed alone."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from adafuse_jax.errors import UserError
from adafuse_jax.kernels import build
from adafuse_jax.ops import actions as act
from adafuse_jax.ops import costs

PANEL, GROUP = 64, 16  # as in common.h
# Outputs from which on 3x3 convolutions are filtered by small tiles: their images are too small for large
# ones to repay 2.25 times the weights.
WIDE = 512
# Of Winograd's minimal filtering, by the inputs of a tile and the taps: F(2, 3), of the points 0, 1, -1 and
# infinity, F(4, 3) and F(3, 4), of 2 and -2 as well.
_G = {
    (4, 3): np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
    (6, 3): np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
    (6, 4): np.array(
        [[6, 0, 0, 0], [-4, -4, -4, -4], [-4, 4, -4, 4], [1, 2, 4, 8], [1, -2, 4, -8], [0, 0, 0, 24]]
    )
    / 24,
}
TARGET = "adafuse_jax_compact_block"

Conv = tuple[Float[np.ndarray, "k k i o"], Float[np.ndarray, " o"]]  # a kernel, and the bias


def _static() -> dataclasses.Field:
    return dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    """Of a block's convolutions, their norms folded in, laid out for the native code; see `pack_block`.

    Attributes:
        data: kernels and biases in turns, see `joined`: of the first two convolutions, of the third if there
            is one, and the shortcut's kernel if it has one, whose bias is part of the one before. The first
            kernel is laid out by outputs, (c, taps, i), all others in panels of 64 outputs side by side,
            (panels, taps, inputs, 64). Where one of the first two convolutions is filtered by tiles (see
            `kernels/filtered.h`), its taps are frequencies, and the first kernel is (taps, c, i).
        kernels: sizes of those of the first two.
        strides: of the same.
        sides: inputs in a row of the tiles by which they are filtered, or 0.
        width: outputs of the first one, c.
        middle: of the second one, m.
        features: of the block, o.
        third: whether there is a third one.
        projects: whether the shortcut has one.
    """

    data: Float[Array, " floats"]
    kernels: tuple[int, int] = _static()
    strides: tuple[int, int] = _static()
    sides: tuple[int, int] = _static()
    width: int = _static()
    middle: int = _static()
    features: int = _static()
    third: bool = _static()
    projects: bool = _static()


class Before(NamedTuple):
    """What `compact_step` remembers of the frame before; all zeros: there was none.

    Attributes:
        x: what the first convolution read.
        y: its kept channels, one after the other, of each pixel, and then its actions, each one more than its
            code.
    """

    x: Float[Array, "b h w i"]
    y: Float[Array, "b floats"]


def pack_block(
    conv1: Conv,
    conv2: Conv,
    conv3: Conv | None = None,
    shortcut: Conv | None = None,
    strides: tuple[int, int] = (1, 1),
) -> Weights:
    """Lays weights out.

    Args:
        conv1: before the fusion.
        conv2: after it.
        conv3: 1x1, if there is one.
        shortcut: 1x1, if it is a convolution.
        strides: of the first two.
    """
    sides = tuple(_side(conv[0], stride) for conv, stride in zip((conv1, conv2), strides, strict=True))
    (kernel1, bias1), (kernel2, bias2) = conv1, conv2
    if sides[0]:
        arrays = [np.swapaxes(by_frequency(kernel1, sides[0]), 2, 3), bias1]
    else:
        arrays = [np.moveaxis(kernel1.reshape(-1, *kernel1.shape[2:]), 2, 0), bias1]
    arrays += panels(by_frequency(kernel2, sides[1]) if sides[1] else kernel2, bias2)
    if conv3 is not None:
        arrays += panels(*conv3)
    if shortcut is not None:
        kernel, bias = panels(*shortcut)
        arrays[-1] = arrays[-1] + bias
        arrays.append(kernel)
    return Weights(
        data=joined(arrays),
        kernels=(len(kernel1), len(kernel2)),
        strides=tuple(strides),
        sides=sides,
        width=len(bias1),
        middle=len(bias2),
        features=len((conv3 or conv2)[1]),
        third=conv3 is not None,
        projects=shortcut is not None,
    )


def joined(arrays: Sequence[Float[np.ndarray, "..."]]) -> Float[Array, " floats"]:
    """Arrays as one, each from a multiple of 16 floats on: a call takes JAX microseconds for each it has."""
    padded = [np.pad(np.ravel(array), (0, -np.size(array) % GROUP)) for array in arrays]
    return jnp.asarray(np.concatenate(padded), jnp.float32)


def _side(kernel: Float[np.ndarray, "k l i o"], stride: int) -> int:
    """Inputs in a row of the tiles by which a convolution is filtered, or 0."""
    if kernel.shape[:2] != (3, 3) or stride != 1:
        return 0
    return 6 if kernel.shape[3] < WIDE else 4


def by_frequency(kernel: Float[np.ndarray, "k k i o"], side: int) -> Float[np.ndarray, "side side i o"]:
    """G w G^T of a kernel of 3x3 or 4x4, as tiles of `side` inputs in a row want it, 4 or 6; 4x4: 6."""
    g = _G[side, len(kernel)]
    return np.einsum("fy,gx,yxio->fgio", g, g, kernel)


def panels(
    kernel: Float[np.ndarray, "k l c o"], bias: Float[np.ndarray, " o"]
) -> list[Float[np.ndarray, "..."]]:
    """A kernel as (panels, taps, c, 64), the last panel filled up with zeros, and the bias to it."""
    taps, (c, o) = math.prod(kernel.shape[:2]), kernel.shape[2:]
    fill = -o % PANEL
    panels = np.pad(kernel.reshape(taps, c, o), ((0, 0), (0, 0), (0, fill)))
    return [np.moveaxis(panels.reshape(taps, c, -1, PANEL), 2, 0), np.pad(bias, (0, fill))]


def numbers(actions: tuple[str, ...]) -> Int8[np.ndarray, " actions"]:
    """0 for skip, 1 for reuse, 2 for keep."""
    return np.asarray([act.ALL.index(action) for action in actions], np.int8)


def codes(policy: Float[Array, "*b c actions"], actions: tuple[str, ...] = act.ALL) -> Int8[Array, "*b c"]:
    """A one-hot policy as the `numbers` of its actions."""
    return jnp.asarray(numbers(actions))[jnp.argmax(policy, -1)]


def one_hot(codes: Int8[Array, "*b c"], actions: tuple[str, ...] = act.ALL) -> Float[Array, "*b c actions"]:
    """The policy whose `codes` these are."""
    return (codes[..., None] == numbers(actions)).astype(jnp.float32)


def compact_block(
    x: Float[Array, "b t h w i"],
    weights: Weights,
    actions: Int8[Array, "b t c"],
    shortcut: Float[Array, "b t ..."] | None = None,
    level: str = "best",
) -> tuple[Float[Array, "b t y x o"], Float[Array, "b t o"] | None]:
    """A block, on the CPU and without a gradient.

    conv2(fuse(relu(conv1(x)))) with Eq. 3 by `actions`; of that conv3(relu()), if there is one; and with a
    shortcut the ReLU of the sum. The first two convolutions are padded by half their kernels. What isn't
    finite in a channel stays in it: unlike 0 * inf in the dense computation, a skipped one can't make others
    NaN. Of a 3x3 convolution of stride 1, it makes whole tiles of 4x4 outputs NaN.

    Args:
        x: float32.
        weights: from `pack_block`.
        actions: from `codes`.
        shortcut: to add; where the weights have a convolution for it, its input, of the shape of x.
        level: instructions to use, of `build.LEVELS`.

    Returns:
        The output, and where there is a third convolution the output's averages over the pixels, which cost
        next to nothing while it is made.

    Raises:
        UserError: for another level, type of x or number of the shortcut's channels.
        RuntimeError: without native code (`build.load`).
    """
    empty = Before(jnp.zeros((0, *x.shape[2:])), jnp.zeros((0, _between(x.shape[2:4], weights))))
    out, _, averages = _call(x, weights, actions, empty, shortcut, level)
    return out, averages


def before_first(x: Float[Array, "b h w i"], weights: Weights) -> Before:
    """What there is before the first frame of streams."""
    return Before(jnp.zeros_like(x), jnp.zeros((len(x), _between(x.shape[1:3], weights))))


def compact_step(
    x: Float[Array, "b h w i"],
    weights: Weights,
    actions: Int8[Array, "b c"],
    before: Before,
    shortcut: Float[Array, "b ..."] | None = None,
    level: str = "best",
) -> tuple[Before, Float[Array, "b y x o"], Float[Array, "b o"] | None]:
    """`compact_block` one frame at a time: what is reused and wasn't computed at the frame before is now.

    Args:
        x: see `compact_block`; here and in the following of one frame.
        weights: from `pack_block`.
        actions: from `codes`.
        before: from `before_first`, or the step before.
        shortcut: to add.
        level: instructions to use, of `build.LEVELS`.

    Raises:
        UserError: for another level, type of x or number of the shortcut's channels.
        RuntimeError: without native code (`build.load`).
    """
    shortcut = None if shortcut is None else shortcut[:, None]
    out, y, averages = _call(x[:, None], weights, actions[:, None], before, shortcut, level)
    return Before(x, y[:, 0]), out[:, 0], None if averages is None else averages[:, 0]


def _sizes(size: tuple[int, int], weights: Weights) -> list[tuple[int, int]]:
    """Height and width after the first convolution, and after the second."""
    sizes = [size]
    for kernel, stride in zip(weights.kernels, weights.strides, strict=True):
        sizes.append(tuple(costs.conv_out(s, kernel, stride, kernel // 2) for s in sizes[-1]))
    return sizes[1:]


def _between(size: tuple[int, int], weights: Weights) -> int:
    """Floats of a frame between the first two convolutions, its actions behind it."""
    return (math.prod(_sizes(size, weights)[0]) + 1) * filled(weights.width)


def filled(channels: int) -> int:
    """Floats of a pixel of so many channels in the native code."""
    return channels + -channels % GROUP


def _call(x, weights, actions, before, shortcut, level):
    """The output, what lies between the first two convolutions, and the output's averages or None."""
    level = build.checked(x, level)
    features = weights.features
    between, size = _between(x.shape[2:4], weights), _sizes(x.shape[2:4], weights)[1]
    if shortcut is None:
        shortcut = jnp.zeros((0,) * 5)
    elif not weights.projects:
        if shortcut.shape[-1] != features:
            raise UserError(f"shortcut: expected {features} channels, found {shortcut.shape[-1]}")
        fill = filled(features) - features
        shortcut = jnp.pad(shortcut, ((0, 0),) * 4 + ((0, fill),)) if fill else shortcut
    thirds = x.shape[:2] if weights.third else (0, 0)
    shapes = (
        (*x.shape[:2], *size, filled(features)),
        (*x.shape[:2], between),
        (*thirds, *size, filled(weights.middle)),
        (len(before.x), between),
        (*thirds, filled(features)),
    )
    call = jax.ffi.ffi_call(TARGET, [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes])
    attributes = {
        "kernel1": weights.kernels[0],
        "stride1": weights.strides[0],
        "side1": weights.sides[0],
        "kernel2": weights.kernels[1],
        "stride2": weights.strides[1],
        "side2": weights.sides[1],
        "middle": weights.middle,
        "features": features,
        "third": weights.third,
        "projects": weights.projects,
        "level": level,
    }
    attributes = {name: np.int64(n) for name, n in attributes.items()}
    out, y, _, _, averages = call(x, weights.data, actions, shortcut, *before, **attributes)
    return out[..., :features], y, averages[..., :features] if weights.third else None
