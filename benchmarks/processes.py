"""Measurements in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def run(
    module: str, arguments: Sequence[str], *, torch: bool, variables: Mapping[str, str] | None = None
) -> Any:
    """What `python -m module arguments` prints last, read as JSON.

    Without `torch` it isn't where Python looks: libraries of ours import it where they find it.
    """
    environment = dict(os.environ) | dict(variables or {})
    if not torch and (found := util.find_spec("torch")):
        folders = environment.get("PYTHONPATH", "").split(os.pathsep)
        theirs = Path(found.origin).parent.parent
        environment["PYTHONPATH"] = os.pathsep.join(f for f in folders if f and Path(f) != theirs)
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])
