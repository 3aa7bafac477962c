"""A policy network as one call of native code: what it sees, its two matrices, and the likeliest actions."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from adafuse_jax.kernels import build
from adafuse_jax.kernels.block import joined, numbers, panels
from adafuse_jax.ops import actions as act
from adafuse_jax.ops import norm, policy

TARGET = "adafuse_jax_policy"


class PolicyWeights(NamedTuple):
    """Of a policy network, laid out for the native code; see `pack_policy`.

    Attributes:
        kernels: the two matrices, see `pack_kernels`.
        norm: factor and offset of each hidden unit: fc0's bias and the norm after it.
        bias: the last one, one for all frames or one for each.
    """

    kernels: Float[Array, " floats"]
    norm: Float[Array, "2 hidden"]
    bias: Float[Array, "*b o"]


def pack_kernels(
    kernel0: Float[Array, "i hidden"], kernel1: Float[Array, "hidden o"]
) -> Float[Array, " floats"]:
    """Lays matrices out: of each, 64 columns side by side, (panels, rows, 64)."""
    return joined([panels(np.asarray(k)[None, None], np.zeros(k.shape[1]))[0] for k in (kernel0, kernel1)])


def pack_policy(
    mlp: policy.MLP,
    running: norm.Moments,
    pack: Callable[[Array, Array], Array] = pack_kernels,
) -> PolicyWeights:
    """Lays a network's weights out, with the running statistics of its norm.

    Args:
        mlp: of the network.
        running: of its norm.
        pack: `pack_kernels`, or what remembers its results where networks share matrices.
    """
    mean, var = (np.asarray(moment) for moment in running)
    factor = np.asarray(mlp.scale) / np.sqrt(var + norm.EPSILON)
    offset = (np.asarray(mlp.bias0) - mean) * factor + np.asarray(mlp.shift)
    return PolicyWeights(
        pack(mlp.kernel0, mlp.kernel1), jnp.asarray(np.stack([factor, offset]), jnp.float32), mlp.bias1
    )


def compact_policy(
    x: Float[Array, "b t h w i"],
    v_before: Float[Array, "b i"],
    weights: PolicyWeights,
    channels: int,
    actions: tuple[str, ...] = act.ALL,
    level: str = "best",
) -> tuple[Float[Array, "b t i"], Int8[Array, "b t c"]]:
    """The likeliest actions of each frame, on the CPU (paper, section 3).

    Weights are taken to be finite: those of a hidden unit that is zero in all frames aren't read.

    Args:
        x: what the first convolution reads, float32.
        v_before: its averages at the frame before the first; zeros: there was none.
        weights: from `pack_policy`.
        channels: that the network decides on, c; neighbours share a decision where it gives fewer.
        actions: what it chooses from.
        level: instructions to use, of `build.LEVELS`.

    Returns:
        The averages v of each frame over its pixels, and the actions as `block.codes` has them.

    Raises:
        UserError: for another level or type of x.
        RuntimeError: without native code (`build.load`).
    """
    level = build.checked(x, level)
    bias = weights.bias.reshape(-1, weights.bias.shape[-1])
    attributes = {
        "group_size": np.int64(channels * len(actions) // bias.shape[-1]),
        "actions": numbers(actions).astype(np.int64),
        "level": level,
    }
    batch, frames, features = x.shape[0], x.shape[1], x.shape[-1]
    v = jax.ShapeDtypeStruct((batch, frames, features), jnp.float32)
    chosen = jax.ShapeDtypeStruct((batch, frames, channels), jnp.int8)
    return tuple(
        jax.ffi.ffi_call(TARGET, (v, chosen))(x, v_before, weights.kernels, weights.norm, bias, **attributes)
    )
