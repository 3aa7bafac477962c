"""What a training step sends between devices: counted in the compiled program, for docs/scaling.md.

    python -m benchmarks.scaling [MODEL ...]

Compiles the step of each model for 8 virtual devices (of small images and few frames: what is sent doesn't
depend on them) and counts the operands of its all-reduces: those of at least 1 MB together with all that are
gradients of a parameter, and the small ones, which are BatchNorm's sums and the metrics'.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
)

import math
import re
import sys

import jax
import numpy as np

from adafuse_jax.config import Config
from adafuse_jax.train import mesh, run
from adafuse_jax.train import state as states
from adafuse_jax.train.optim import make_optimizer
from adafuse_jax.train.step import make_train_step

MODELS = ("tsn_r18", "adafuse_tsn_r18", "tsn_r50", "adafuse_tsn_r50")
SIZE, FRAMES, CLIPS = 64, 2, 8
_BYTES = {"f32": 4, "s32": 4, "pred": 1, "u8": 1, "f64": 8, "s64": 8, "bf16": 2}


def all_reduces(text: str) -> list[int]:
    """Bytes of each operand of each all-reduce in a compiled program's text."""
    found = []
    for shapes in re.findall(r"= (.*?) all-reduce(?:-start)?\(", text):
        for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            found.append(_BYTES[kind] * math.prod(int(n) for n in sizes.split(",") if n))
    return found


def compiled(name: str, norm_clips: int) -> tuple[str, int]:
    """The compiled step's text, and the bytes of the parameters."""
    config = Config.from_dict(
        {
            "model": {"name": name},
            "data": {"num_frames": FRAMES, "image_size": SIZE, "resize": SIZE},
            "train": {"batch_size": CLIPS, "eval_batch_size": CLIPS, "norm_clips": norm_clips},
        }
    )
    parts = run.build(config)
    optimizer = make_optimizer(config.optimizer, parts.params, 1, 100)
    state = jax.eval_shape(lambda: states.initial(parts.params, parts.stats, optimizer))
    clips = {
        "clip": np.zeros((CLIPS, FRAMES, SIZE, SIZE, 3), np.uint8),
        "label": np.zeros(CLIPS, np.int32),
        "weight": np.ones(CLIPS, np.float32),
    }
    step = make_train_step(parts.graph, config, optimizer, 100, parts.devices)
    lowered = step.lower(state, mesh.put(clips, parts.devices), jax.random.key(0))
    text = lowered.compile(compiler_options={"xla_backend_optimization_level": 0}).as_text()
    return text, sum(leaf.nbytes for leaf in jax.tree.leaves(parts.params))


def main() -> None:
    print("model                norms over    parameters all-reduced operands  of < 16 kB")
    for name in sys.argv[1:] or MODELS:
        for norm_clips in (0, 1):
            text, parameters = compiled(name, norm_clips)
            sent = all_reduces(text)
            small = [n for n in sent if n < 1 << 14]
            print(
                f"{name:20s} {'a device' if norm_clips else 'all':12s} {parameters / 1e6:8.1f} MB "
                f"{sum(sent) / 1e6:8.1f} MB {len(sent):8d} {len(small):5d}, {sum(small) / 1e6:.2f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
