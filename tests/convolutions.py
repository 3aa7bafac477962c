"""Convolutions to solve, and what XLA makes of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from helpers import quick_jit

from adafuse_jax.kernels import build

NAMES = ("NHWC", "HWIO", "NHWC")
SAME = ((1, 1), (1, 1))


def drawn(seed, *shapes):
    random = np.random.default_rng(seed)
    return [jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes]


def problem(seed, n, h, w, inputs, outputs):
    """x, kernel, dy, of 3x3 and stride 1."""
    return drawn(seed, (n, h, w, inputs), (3, 3, inputs, outputs), (n, h, w, outputs))


def xla(x, kernel, strides=(1, 1), pads=SAME):
    return jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NAMES)


@functools.partial(quick_jit, static_argnums=(3, 4))
def expected(x, kernel, dy, strides=(1, 1), pads=SAME):
    """y, dx and dkernel."""
    y, gradients = jax.vjp(lambda x, kernel: xla(x, kernel, strides, pads), x, kernel)
    return y, *gradients(dy)


def assert_close(found, wanted, atol=5e-6):
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=atol * np.abs(b).max(initial=0))


def module_gradients(function, x, channels, **options):
    """Of an `nnx.Conv` that calls `function`: the gradients of a loss, of its parameters and of x."""
    layer = nnx.Conv(*channels, **options, conv_general_dilated=function, rngs=nnx.Rngs(0))
    graph, params = nnx.split(layer)

    def loss(params, x):
        return jnp.square(nnx.merge(graph, params)(x).astype(jnp.float32)).mean()

    return jax.tree.leaves(quick_jit(jax.grad(loss, (0, 1)))(params, x))


def levels_of(call):
    """Those that this CPU has: call(level) runs, or says that the CPU lacks them."""
    found = []
    for level in build.LEVELS:
        try:
            call(level).block_until_ready()
            found.append(level)
        except jax.errors.JaxRuntimeError as error:
            assert "level: expected instructions that this CPU has" in str(error)
    assert found[:2] == ["best", "baseline"]
    return found
