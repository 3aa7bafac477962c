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
STEP
state = x + 1
for _ in range(3):
    state = step(state, x)
print(sum("cache_hits" in hit for hit in hits) > 0, np.asarray(state).tobytes().hex())
"""


ALONE = """
step = jax.jit(lambda s, x: jnp.tanh(s @ x), donate_argnums=0)
x = jnp.linspace(-1, 1, 64).reshape(8, 8)
"""
# By native code, which each of the devices calls with its own images.
SHARED = """
from adafuse_jax.kernels import conv
from adafuse_jax.train import mesh
devices = mesh.make()
turned = lambda x: conv.convolution(x, jnp.ones((3, 3, 64, 64)) / 64, (1, 1), ((1, 1), (1, 1)))
gradient = jax.grad(lambda s, x: (turned(s) * x).sum())
step = jax.jit(lambda s, x: jnp.tanh(gradient(s, x)), in_shardings=mesh.by_clip(devices))
x = np.linspace(-1, 1, 16 * 64 * devices.size, dtype=np.float32).reshape(devices.size, 4, 4, 64)
x = jax.device_put(x, mesh.by_clip(devices))
"""


def run(*arguments, step=ALONE, **environment):
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("STEP", step), *map(str, arguments)],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stderr == ""
    return found.stdout.split()


@pytest.mark.parametrize("step", [ALONE, SHARED], ids=["alone", "shared"])
def test_a_second_process_reads_what_the_first_compiled(tmp_path, step):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    folder = tmp_path / compiled.FOLDER / compiled.machine()
    _, first = run(tmp_path, step=step, **flags)
    kept = {path.name for path in folder.glob("*-cache")}
    assert kept
    hit, second = run(tmp_path, step=step, **flags)
    assert hit == "True"
    assert {path.name for path in folder.glob("*-cache")} == kept
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
