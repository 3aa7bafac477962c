"""A long short-term memory cell with PyTorch's order of gates and its two biases."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Weights(NamedTuple):
    """The gates input, forget, cell and output follow each other on the last axis."""

    kernel_x: Float[Array, "i 4*h"]
    kernel_h: Float[Array, "h 4*h"]
    bias_x: Float[Array, " 4*h"]
    bias_h: Float[Array, " 4*h"]


State = tuple[Float[Array, "b h"], Float[Array, "b h"]]


def step(state: State, x: Float[Array, "b i"], weights: Weights) -> State:
    """(h, c) of a frame from those of the frame before.

    i, f, o = sigmoid, g = tanh of x W_x + b_x + h W_h + b_h;  c' = f c + i g;  h' = o tanh(c').
    """
    h, c = state
    gates = x @ weights.kernel_x + weights.bias_x + h @ weights.kernel_h + weights.bias_h
    i, f, g, o = jnp.split(gates, 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def scan(x: Float[Array, "b t i"], weights: Weights) -> Float[Array, "b t h"]:
    """The h of every frame, from zeros before the first."""
    zeros = jnp.zeros((len(x), weights.kernel_h.shape[0]), x.dtype)

    def body(state, frame):
        state = step(state, frame, weights)
        return state, state[0]

    _, h = jax.lax.scan(body, (zeros, zeros), jnp.moveaxis(x, 1, 0))
    return jnp.moveaxis(h, 0, 1)
