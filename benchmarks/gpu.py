"""What compact execution saves on a GPU, block by block: python -m benchmarks.gpu [--batch 8 ...].

Residual blocks of `random_*` models, whose policies are drawn with given shares of skip, reuse and keep, on
clips of 8 frames: as they are (dense, by cuDNN), with all computed and norms folded into convolutions, and
compactly in each tiling. Milliseconds of a block on all clips, medians by turns, and the least compact time
over the least of all computed; then whole clips: dense, and with each block as it was faster. It needs a GPU,
and none has run it yet.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from adafuse_jax import bench, create_model
from adafuse_jax.compact_gpu import DENSE, FOLDED, Choice
from adafuse_jax.report.bench import table

FRAMES = 8


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backbones", nargs="+", default=["r18", "r50"])
    parser.add_argument("--policies", nargs="+", default=[".35,.25,.4", ".5,.3,.2"], help="SKIP,REUSE,KEEP")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32], help="clips")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--turns", type=int, default=15, help="of whole clips")
    args = parser.parse_args()
    if jax.default_backend() != "gpu":
        raise SystemExit(f"benchmarks.gpu: expected a GPU, found {jax.default_backend()}")
    print(f"{jax.devices()[0].device_kind}, {args.dtype}, jax {jax.__version__}", flush=True)
    for backbone in args.backbones:
        for policy in args.policies:
            for batch in args.batches:
                measure(args, backbone, policy, batch)


def measure(args: argparse.Namespace, backbone: str, policy: str, batch: int) -> None:
    """Prints the blocks of one net, and its clips."""
    shares = tuple(map(float, policy.split(",")))
    model = create_model(f"random_{backbone}", shares=shares, dtype=args.dtype)
    shape = (batch, FRAMES, args.image_size, args.image_size, 3)
    clip = jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32), args.dtype)
    runs = bench.prepare(model, clip)
    print(f"\n{backbone}, {batch} x {FRAMES} frames of {args.image_size}x{args.image_size}, {policy}")
    head, *rows = table(runs.choices)
    for row, ratio in zip((head, *rows), ("over", *map(over_all, runs.choices.values())), strict=True):
        print(f"{row}{ratio:>8}")
    seconds = bench.take_turns(runs.clip, args.turns)
    ratios = np.quantile(seconds["compact"] / seconds["dense"], (0.5, 0.25, 0.75))
    print(
        f"clips: dense {1e3 * np.median(seconds['dense']):.2f} ms, as chosen {ratios[0]:.2f} "
        f"({ratios[1]:.2f}..{ratios[2]:.2f}) of it",
        flush=True,
    )


def over_all(choice: Choice) -> str:
    """The least compact time over the least of all computed."""
    times = {way in (DENSE, FOLDED): [] for way in choice.seconds}
    for way, seconds in choice.seconds.items():
        times[way in (DENSE, FOLDED)].append(seconds)
    return f"{min(times[False]) / min(times[True]):.2f}"


if __name__ == "__main__":
    main()
