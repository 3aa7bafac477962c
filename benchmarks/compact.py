"""What policies save of the time on the CPU: python -m benchmarks.compact [--backbones r18 ...].

One clip of 8 frames of 224 x 224 pixels through nets whose policies are drawn with given shares of skip,
reuse and keep, the same at each call. The model as XLA runs it, with everything computed, run compactly, and
run compactly by policies that keep all take turns; ratios are of one turn, and their median and quartiles
are printed.
"""

import argparse
import os
import time

import jax
import numpy as np
from flax import nnx

from adafuse_jax import create_model, flops
from adafuse_jax.compact import Compact

FRAMES = 8


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compact", description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=["r18", "r50"])
    parser.add_argument("--shares", nargs=3, type=float, default=[0.35, 0.25, 0.4], help="skip, reuse, keep")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--image_size", type=int, default=224)
    options = parser.parse_args()
    for backbone in options.backbones:
        measure(backbone, tuple(options.shares), options.turns, options.image_size)


def measure(backbone: str, shares: tuple[float, float, float], turns: int, size: int) -> None:
    """Prints the ratios of one net."""
    made = {share: create_model(f"random_{backbone}", shares=share) for share in (shares, (0.0, 0.0, 1.0))}
    model, keeping = made.values()
    clip = np.random.default_rng(0).standard_normal((1, FRAMES, size, size, 3)).astype(np.float32)
    clip = jax.numpy.asarray(clip)
    graph, weights = nnx.split(model)
    dense = jax.jit(lambda weights, clip: nnx.merge(graph, weights)(clip))
    compact, keeps = Compact(model), Compact(keeping)
    if not compact.native:
        raise SystemExit("no native code to measure")
    runs = {
        "dense": lambda: dense(weights, clip),
        "compact": lambda: compact(clip),
        "compact, all kept": lambda: keeps(clip),
    }
    seconds = {name: [] for name in runs}
    policies = {name: jax.block_until_ready(run().policies) for name, run in runs.items()}  # compiles
    for _ in range(turns):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    cost = flops.count(model, policies["dense"], image_size=size)
    print(
        f"{backbone} {shares}, {turns} turns; load average {os.getloadavg()[0]:.1f}; "
        f"MACs {float(np.mean(cost.actual) / cost.dense):.2f} of dense"
    )
    times = {name: np.array(of) for name, of in seconds.items()}
    for name, base in (
        ("compact", "compact, all kept"),
        ("compact", "dense"),
        ("compact, all kept", "dense"),
    ):
        low, middle, high = np.percentile(times[name] / times[base], (25, 50, 75))
        print(f"  {name} / {base}: {middle:.2f} ({low:.2f}..{high:.2f})")
    print("  median ms: " + ", ".join(f"{name} {1e3 * np.median(of):.0f}" for name, of in times.items()))


if __name__ == "__main__":
    main()
