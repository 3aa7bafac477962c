"""Training compiles large steps and runs few of them: here they compile quickly, and each but once."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


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
