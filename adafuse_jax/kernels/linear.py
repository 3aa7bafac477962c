"""A matrix product of few rows as a call of native code that reads the matrix on all cores."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from adafuse_jax.kernels import build
from adafuse_jax.kernels.block import panels

TARGET = "adafuse_jax_linear"


def pack_linear(kernel: Float[np.ndarray, "i o"]) -> Float[Array, "panels i lanes"]:
    """Lays a matrix out, 64 of its columns side by side."""
    laid_out, _ = panels(np.asarray(kernel)[None, None], np.zeros(kernel.shape[1]))
    return jnp.asarray(laid_out[:, 0], jnp.float32)


def linear(
    x: Float[Array, "*n i"], kernel: Float[Array, "panels i lanes"], features: int, level: str = "best"
) -> Float[Array, "*n o"]:
    """The product x @ kernel, on the CPU and without a gradient.

    Args:
        x: float32.
        kernel: from `pack_linear`.
        features: columns of the matrix, o.
        level: instructions to use, of `build.LEVELS`.

    Raises:
        UserError: for another level or type of x.
        RuntimeError: without native code (`build.load`).
    """
    level, rows = build.checked(x, level), x.reshape(-1, x.shape[-1])
    shape = len(rows), kernel.shape[0] * kernel.shape[2]
    call = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(shape, jnp.float32))
    return call(rows, kernel, level=level)[:, :features].reshape(*x.shape[:-1], features)
