"""Moving channels along time: by one frame for reuse, by parts of the channels for TSM."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def previous_frame(x: Float[Array, "b t *rest"]) -> Float[Array, "b t *rest"]:
    """x_{t-1} at each t, zeros at t = 0."""
    return jnp.concatenate([jnp.zeros_like(x[:, :1]), x[:, :-1]], 1)


def next_frame(x: Float[Array, "b t *rest"]) -> Float[Array, "b t *rest"]:
    """x_{t+1} at each t, zeros at the last."""
    return jnp.concatenate([x[:, 1:], jnp.zeros_like(x[:, :1])], 1)


def temporal_shift(x: Float[Array, "b t *s c"], div: int = 8) -> Float[Array, "b t *s c"]:
    """TSM's bidirectional shift: the first c/div channels from t+1, the second c/div from t-1, zero padded.

    Source: Lin et al., "TSM", ICCV 2019, as the reference uses it (reference.md, "TSM").
    """
    fold = x.shape[-1] // div
    return jnp.concatenate(
        [next_frame(x[..., :fold]), previous_frame(x[..., fold : 2 * fold]), x[..., 2 * fold :]], -1
    )


def online_shift_step(
    before: Float[Array, "b *s fold"], x: Float[Array, "b *s c"]
) -> tuple[Float[Array, "b *s fold"], Float[Array, "b *s c"]]:
    """One frame of the online shift: its carry is the first channels of the frame before."""
    fold = before.shape[-1]
    return x[..., :fold], jnp.concatenate([before, x[..., fold:]], -1)


def online_shift(x: Float[Array, "b t *s c"], div: int = 8) -> Float[Array, "b t *s c"]:
    """The causal TSM: the first c/div channels from t-1, the others stay (a stream can compute it)."""
    fold = x.shape[-1] // div
    return jnp.concatenate([previous_frame(x[..., :fold]), x[..., fold:]], -1)
