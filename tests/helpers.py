"""What several test files need."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from adafuse_jax.ops import costs

ROOT = Path(__file__).resolve().parent.parent


def start_main(*arguments: str, devices: int = 8, compiled: Path | None = None) -> subprocess.Popen:
    """`python main.py` on virtual devices, compiling quickly; `compiled` is a folder to keep that in."""
    quickly = {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    if compiled is not None:
        quickly["JAX_COMPILATION_CACHE_DIR"] = str(compiled)
        quickly["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return subprocess.Popen(
        [sys.executable, "main.py", *arguments],
        cwd=ROOT,
        env=os.environ | quickly,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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


def inception_sites(per_block: list[list[int]], meta: list[list[int]]) -> list[costs.SiteCost]:
    """Sites of BN-Inception's modules: 1x1 | 1x1, 3x3 | 1x1, 3x3, 3x3 | pool, 1x1.

    Modules of stride 2 lack the first branch, and the last one's convolution.
    """
    full = {"inputs": (0, 1, 3, 6), "outputs": (0, 2, 5, 6)}
    strided = {"inputs": (0, 2), "outputs": (1, 4, None)}
    kinds = [full if len(convs) == 7 else strided for convs in per_block]
    sites = []
    for i, (convs, channels, kind) in enumerate(zip(per_block, meta, kinds, strict=True)):
        outputs = [0 if j is None else convs[j] for j in kind["outputs"]]
        last = i + 1 == len(per_block)
        after = 0 if last else sum(per_block[i + 1][j] for j in kinds[i + 1]["inputs"])
        sites.append(costs.SiteCost(tuple(zip(channels, outputs, strict=True)), after))
    return sites
