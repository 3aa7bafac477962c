"""Training compiles large steps and runs few of them: here they compile quickly, and each but once."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from adafuse_jax.train import loop
from adafuse_jax.train.metrics import Metrics


@pytest.fixture(scope="module", autouse=True)
def compile_quickly(tmp_path_factory):
    """Few optimisations, and a compilation cache for this session alone."""
    wanted = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.getbasetemp() / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in wanted}

    def apply(values):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    apply(wanted)
    yield
    apply(before)


@pytest.fixture
def idle_step(monkeypatch):
    """Steps that only count themselves, for tests of what happens around them."""

    def make(graph, config, optimizer, total_steps, devices):
        zero = jnp.zeros(())
        metrics = Metrics(
            zero + 8, zero, zero, zero, zero, jnp.zeros((0, 3)), zero, (), ("skip", "reuse", "keep")
        )
        return lambda state, batch, key: (dataclasses.replace(state, step=state.step + 1), metrics)

    monkeypatch.setattr(loop, "make_train_step", make)
