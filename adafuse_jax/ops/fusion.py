"""Temporal fusion, Eq. 3: y~_t = 1[keep] y_t + 1[reuse] y_{t-1}; a skipped channel is zero."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from adafuse_jax.errors import UserError
from adafuse_jax.ops import actions as act
from adafuse_jax.ops.shift import previous_frame


def fuse(
    policy: Float[Array, "*b c actions"],
    y: Float[Array, "..."],
    before: Float[Array, "..."],
    actions: Sequence[str] = act.ALL,
) -> Float[Array, "..."]:
    """Eq. 3 for frames y and the raw (unfused) frames before them, channels last.

    The axes of `policy` before the channels are the leading axes of `y`.

    Raises:
        UserError: unless there is one decision for each frame and channel of `y`.
    """
    if policy.shape[:-1] != y.shape[: policy.ndim - 2] + y.shape[-1:]:
        raise UserError(
            f"policy: expected one decision for each frame and channel of y {y.shape}, found {policy.shape}"
        )
    spatial = y.ndim - (policy.ndim - 1)
    gate = jnp.expand_dims(policy.astype(y.dtype), tuple(range(policy.ndim - 2, policy.ndim - 2 + spatial)))
    fused = act.chosen(gate, actions, "keep") * y
    if "reuse" in actions:
        fused = fused + act.chosen(gate, actions, "reuse") * before
    return fused


def fuse_step(
    before: Float[Array, "b *s c"],
    policy: Float[Array, "b c actions"],
    y: Float[Array, "b *s c"],
    actions: Sequence[str] = act.ALL,
    detach_history: bool = False,
) -> tuple[Float[Array, "b *s c"], Float[Array, "b *s c"]]:
    """Eq. 3 for one frame of a scan whose carry is the raw map of the frame before."""
    carry = jax.lax.stop_gradient(y) if detach_history else y
    return carry, fuse(policy, y, before, actions)


def fuse_scan(
    policy: Float[Array, "b t c actions"],
    y: Float[Array, "b t *s c"],
    actions: Sequence[str] = act.ALL,
    detach_history: bool = False,
) -> Float[Array, "b t *s c"]:
    """Eq. 3 over a clip as a scan of `fuse_step` over its frames."""

    def step(before, frame):
        policy_t, y_t = frame
        return fuse_step(before, policy_t, y_t, actions, detach_history)

    frames = (jnp.moveaxis(policy, 1, 0), jnp.moveaxis(y, 1, 0))
    _, fused = jax.lax.scan(step, jnp.zeros_like(y[:, 0]), frames)
    return jnp.moveaxis(fused, 0, 1)


def fuse_clip(
    policy: Float[Array, "b t c actions"],
    y: Float[Array, "b t *s c"],
    actions: Sequence[str] = act.ALL,
    detach_history: bool = False,
) -> Float[Array, "b t *s c"]:
    """`fuse_scan`, all frames at once: as reuse takes the raw y_{t-1}, the scan is a shift by one frame."""
    history = jax.lax.stop_gradient(y) if detach_history else y
    return fuse(policy, y, previous_frame(history), actions)
