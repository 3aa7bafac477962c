"""What XLA compiled, kept in the workdir: a run that goes on, or its evaluation, starts without compiling."""

import hashlib
import platform
from pathlib import Path

import jax

FOLDER = "compiled"


def keep(workdir: Path) -> None:
    """Lets JAX keep what takes it more than a second to compile in a folder of the workdir.

    A folder that the user chose (JAX_COMPILATION_CACHE_DIR) stays; JAX_ENABLE_COMPILATION_CACHE=false turns
    it off. Entries that can't be written or read cost a warning of JAX's and the time to compile.
    """
    # What devices share in ways of our own (kernels/sharing.py) would have another name in each process.
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
    if jax.config.jax_compilation_cache_dir is None:
        folder = workdir / FOLDER / machine()
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """A name for this kind of processor.

    JAX names its entries by versions, options and devices, but for a CPU not by the instructions that it has:
    on an older machine that shares the folder, code compiled on a newer one could be killed.
    """
    lines = [platform.machine(), platform.processor()]
    if cpuinfo.exists():
        wanted = ("model name", "flags", "CPU part", "Features")  # x86, Arm
        lines += sorted({line for line in cpuinfo.read_text().splitlines() if line.startswith(wanted)})
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
