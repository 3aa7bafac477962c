"""What several test files need."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# Compiles in half the time; for tests that run what they compile once or twice.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def filled(create: Callable[[], nnx.Module], seed: int = 0) -> nnx.Module:
    """The module that `create` makes, without running it: its variables N(0, 1), variances above 1.

    Weights that large leave no two actions about equally likely.
    """
    random = np.random.default_rng(seed)

    def draw(path, variable):
        value = random.standard_normal(variable.shape).astype(np.float32)
        return jnp.asarray(1 + value**2 if path[-1].key == "var" else value)

    module = nnx.eval_shape(create)
    state = nnx.state(module)
    nnx.replace_by_pure_dict(state, jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state)))
    nnx.update(module, state)
    return module
