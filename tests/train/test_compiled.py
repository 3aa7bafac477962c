"""What was compiled is found again, by the same kind of machine only."""

import os
import subprocess
import sys

import pytest

from adafuse_jax.train import compiled

PROGRAM = """
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from adafuse_jax.train import compiled

hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
compiled.keep(Path(sys.argv[1]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
step = jax.jit(lambda s, x: jnp.tanh(s @ x), donate_argnums=0)
x = jnp.linspace(-1, 1, 64).reshape(8, 8)
state = x + 1
for _ in range(3):
    state = step(state, x)
print(sum("cache_hits" in hit for hit in hits) > 0, np.asarray(state).tobytes().hex())
"""


def run(*arguments, **environment):
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stderr == ""
    return found.stdout.split()


def test_a_second_process_reads_what_the_first_compiled(tmp_path):
    hit, first = run(tmp_path)
    assert hit == "False"
    assert list((tmp_path / compiled.FOLDER / compiled.machine()).iterdir())
    hit, second = run(tmp_path)
    assert hit == "True"
    assert second == first


@pytest.mark.parametrize("chosen", [{}, {"JAX_ENABLE_COMPILATION_CACHE": "false"}])
def test_the_users_choice_stands(tmp_path, chosen):
    folder = tmp_path / "mine"
    run(tmp_path / "workdir", JAX_COMPILATION_CACHE_DIR=str(folder), **chosen)
    assert folder.exists() != bool(chosen)
    assert not (tmp_path / "workdir").exists()


def test_machines_that_know_other_instructions_have_other_names(tmp_path):
    names = set()
    for flags in ("sse2 avx2", "sse2 avx2 avx512f"):
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text(f"processor\t: 0\nmodel name\t: EPYC\ncpu MHz\t: 1\nflags\t: {flags}\n")
        names.add(compiled.machine(cpuinfo))
        cpuinfo.write_text(cpuinfo.read_text().replace("MHz\t: 1", "MHz\t: 2"))  # changes all the time
        names.add(compiled.machine(cpuinfo))
    assert len(names) == 2
