"""The house's rooms: imports run one way only, and the layer comes without the weight of the rest."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "adafuse_jax"

# What a room may import, besides itself and the foundation, and what its imports may import (design.md).
BUILDING = {
    "ops": (),
    "layers": ("ops",),
    "linen": ("ops",),
    "insert": ("layers", "linen", "ops"),
    "models": ("layers", "ops", "kernels"),
    "flops": ("ops", "models"),
    "weights": ("models",),
    "input": (),
    "train": ("models", "flops", "input", "weights"),
    "kernels": ("ops",),
}
# What a user does with a trained model: may import all of the above, and each other.
USER = (
    "predict",
    "streaming",
    "compact",
    "compact_gpu",
    "live",
    "bench",
    "convert",
    "export",
    "report",
    "cli",
)
FOUNDATION = ("errors", "memory", "config", "config_checks")


@functools.cache
def allowed(room: str) -> frozenset[str]:
    """All rooms that `room` may import, directly or through others."""
    if room == "__init__" or room in USER:
        return frozenset(BUILDING) | set(USER) | set(FOUNDATION)
    if room in FOUNDATION:
        return frozenset(FOUNDATION)
    below = BUILDING[room]
    return frozenset({room, *FOUNDATION, *below}).union(*map(allowed, below))


def imported(source: str) -> set[str]:
    """Dotted names of all modules that a source imports, anywhere in it.

    `import adafuse_jax` counts as importing what is then taken from it: `adafuse_jax.x`.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "adafuse_jax":
            names.add(f"adafuse_jax.{node.attr}")
    return names


# What `adafuse_jax` hands on, and the room that it comes from.
HANDED_ON = {"create_model": "models", "list_models": "models", "insert_fusion": "insert"}


def rooms(source: str) -> set[str]:
    """Rooms of the package that a source imports."""
    found = {name.split(".")[1] for name in imported(source) if name.startswith("adafuse_jax.")}
    return {HANDED_ON.get(name, name) for name in found} - {"__version__"}


def libraries(source: str) -> set[str]:
    return {name.split(".")[0] for name in imported(source)}


def files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", files(PACKAGE), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path):
    room = room_of(path)
    assert room in {"__init__", *BUILDING, *USER, *FOUNDATION}, f"{room}: no room of the house"
    assert rooms(path.read_text()) - allowed(room) == set(), f"{room} may import {sorted(allowed(room))}"


def test_no_room_is_below_itself():
    for room, below in BUILDING.items():
        assert all(room not in allowed(other) for other in below)


def test_the_check_finds_what_it_looks_for():
    assert rooms("from adafuse_jax.train import loop") - allowed("models") == {"train"}
    assert rooms("from adafuse_jax import flops") - allowed("ops") == {"flops"}
    assert rooms("def f():\n  import adafuse_jax\n  adafuse_jax.flops.count()") - allowed("layers") == {
        "flops"
    }
    assert rooms("import adafuse_jax\nadafuse_jax.create_model") - allowed("ops") == {"models"}
    assert rooms("from adafuse_jax.ops import norm\nimport adafuse_jax.errors") - allowed("layers") == set()
    assert libraries("import torch.nn as nn\nfrom jax import numpy") == {"torch", "jax"}
    assert len(files(PACKAGE)) > 20


def test_no_tensorflow_and_no_torch():
    sources = [ROOT / "main.py", *files(PACKAGE, ROOT / "configs", ROOT / "data")]
    found = {str(p): libraries(p.read_text()) & {"tensorflow", "torch"} for p in sources if p.exists()}
    assert {path: names for path, names in found.items() if names} == {}


def test_input_is_numpy_only():
    forbidden = {"jax", "flax", "optax", "chex", "orbax"}
    found = {str(p): libraries(p.read_text()) & forbidden for p in files(PACKAGE / "input")}
    assert {path: names for path, names in found.items() if names} == {}


def test_the_layer_comes_alone():
    """`import adafuse_jax` loads nothing that reads videos, draws or saves."""
    heavy = ["av", "cv2", "grain", "matplotlib", "ml_collections", "orbax", "tensorboardX", "tqdm"]
    program = f"import sys, adafuse_jax; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
