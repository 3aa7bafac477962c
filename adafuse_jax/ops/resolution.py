"""One decision a frame: at which resolution to see it, or how many frames to skip (AR-Net).

Source: Meng et al., "AR-Net: Adaptive Frame Resolution for Efficient Action Recognition", ECCV 2020,
section 3, and its published code (ops/models_ada.py). A choice is one-hot over the actions; `lengths` says
how many frames each action answers for, its own included: 1 for a resolution, k for skipping k frames.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from adafuse_jax.ops import lstm, policy


def nearest(clip: Float[Array, "b t h w c"], hw: tuple[int, int]) -> Float[Array, "b t y x c"]:
    """Frames of `hw` pixels: pixel i of n is pixel floor(i * N / n) of N, as PyTorch's "nearest".

    Not antialiased: AR-Net trains on frames made small so, from those of the largest resolution.
    """
    for axis, (n, size) in enumerate(zip(hw, clip.shape[2:4], strict=True), 2):
        if n != size:
            clip = jnp.take(clip, jnp.arange(n) * size // n, axis)
    return clip


def choose(
    x: Float[Array, "b t i"],
    weights: lstm.Weights,
    kernel: Float[Array, "h actions"],
    bias: Float[Array, " actions"],
    *,
    lengths: Sequence[int],
    key: Key[Array, ""] | None = None,
    tau: float = 1.0,
    hold_cell: bool = True,
) -> tuple[Float[Array, "b t actions"], Float[Array, "b t h"]]:
    """Goes through a clip: an LSTM reads each frame that isn't skipped, its h_t says what to do with it.

    p_t = softmax(h_t W + b); the choice is the likeliest, under a key Gumbel-sampled with the
    straight-through gradient. Skipping k frames skips this one and the next k - 1: there the choice is
    repeated and the state stays as it is.

    Args:
        x: frame features.
        weights: of the LSTM.
        kernel: W.
        bias: b.
        lengths: frames that each action answers for.
        key: None: the likeliest actions.
        tau: temperature of the gradient.
        hold_cell: False, as published: over skipped frames h is held, but the cell reads on.

    Returns:
        The choices, and h_t of each frame read (of a skipped frame: what it would have been).
    """
    lengths = jnp.asarray(lengths, x.dtype)
    keys = jnp.arange(x.shape[1]) if key is None else policy.frame_keys(key, x.shape[1])

    def body(carry, frame):
        (h, c), left, before = carry
        x_t, key_t = frame
        read = lstm.step((h, c), x_t, weights)
        log_probs = policy.log_policy(read[0] @ kernel + bias, len(lengths))
        chosen = policy.decide(log_probs, None if key is None else key_t, tau)[:, 0]
        skipped = (left > 0)[:, None]
        chosen = jnp.where(skipped, before, chosen)
        left = _left(left, chosen, lengths)
        held = (jnp.where(skipped, h, read[0]), jnp.where(skipped & hold_cell, c, read[1]))
        return (held, left, chosen), (chosen, read[0])

    zeros = jnp.zeros((len(x), weights.kernel_h.shape[0]), x.dtype)
    first = ((zeros, zeros), zeros[:, 0], jnp.zeros((len(x), len(lengths)), x.dtype))
    _, (choices, states) = jax.lax.scan(body, first, (jnp.moveaxis(x, 1, 0), keys))
    return jnp.moveaxis(choices, 0, 1), jnp.moveaxis(states, 0, 1)


def asked(choices: Float[Array, "b t actions"], lengths: Sequence[int]) -> Float[Array, "b t"]:
    """1 at the frames where a decision was taken, 0 where an earlier one skips them; without a gradient."""
    lengths = jnp.asarray(lengths, choices.dtype)

    def body(left, chosen):
        return _left(left, chosen, lengths), (left <= 0).astype(choices.dtype)

    _, found = jax.lax.scan(body, jnp.zeros_like(choices[:, 0, 0]), jnp.moveaxis(choices, 1, 0))
    return jnp.moveaxis(found, 0, 1)


def _left(
    left: Float[Array, " b"], chosen: Float[Array, "b actions"], lengths: Float[Array, " actions"]
) -> Float[Array, " b"]:
    """After this frame, how many more the last decision answers for."""
    taken = jax.lax.stop_gradient(chosen) @ lengths
    return jnp.where(left > 0, left, taken) - 1
