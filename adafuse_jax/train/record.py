"""run.json: with what, where and how a run was started, and started again."""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jax

import adafuse_jax
from adafuse_jax.config import Config
from adafuse_jax.errors import UserError

FILE = "run.json"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def add(workdir: Path, config: Config, devices: list[jax.Device]) -> None:
    """Adds this start to the list in `workdir`/run.json.

    An entry holds `started` (UTC), `command` and `folder` to run it in, `seed`, `host`, `processes`,
    `devices`, `versions`, and `git` (see `revision`).

    Args:
        workdir: exists.
        config: of the run.
        devices: that it runs on.

    Raises:
        UserError: where run.json holds something else.
    """
    path = workdir / FILE
    starts = _read(path) if path.exists() else []
    kinds = Counter(device.device_kind for device in devices)
    starts.append(
        {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": shlex.join(sys.orig_argv),
            "folder": os.getcwd(),
            "seed": config.train.seed,
            "host": socket.gethostname(),
            "processes": jax.process_count(),
            "devices": [f"{count} x {kind}" for kind, count in kinds.items()],
            "versions": versions(),
            "git": revision(Path(__file__).parents[1]),
        }
    )
    # Written beside and renamed, so that a run killed here leaves one whole file or the other.
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(starts, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, path)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        starts = json.loads(path.read_bytes())
    except ValueError:
        starts = None
    if not isinstance(starts, list):
        raise UserError(f"{path}: expected the JSON of a run's starts, found something else")
    return starts


def versions() -> dict[str, str | None]:
    """Of Python, this package and those that the numbers come from; None for one without metadata."""
    found = {"python": platform.python_version(), "adafuse_jax": adafuse_jax.__version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def revision(package: Path) -> dict[str, Any] | None:
    """The commit that a package's folder is checked out at, and whether tracked files were changed since.

    Returns:
        `revision` and `changed`; None for a package that git doesn't keep (an installed one, even inside
        somebody else's checkout), and where git is missing or refuses.
    """

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", *args], cwd=package, capture_output=True, text=True, check=True, timeout=30
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"revision": git("rev-parse", "HEAD"), "changed": changed}
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
