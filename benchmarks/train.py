"""A step of training beside the same in PyTorch: python -m benchmarks.train [--models tsn_r18 ...].

Clips of 8 random frames; forward, loss, gradients clipped by their norm, SGD with momentum. PyTorch's model
is benchmarks/torch_model.py (torch is no requirement of this package: `pip install torch --target DIR`, then
`PYTHONPATH=DIR`; without it ours is timed alone). Each measurement is a process of its own, after a warm-up;
the contestants take turns, and ratios are of one turn. Where other work disturbs the clock, `--one_core`
takes processor time. What is compiled is kept between turns in a folder of the benchmark's.

On the CPU both compute in float32; where there is a GPU, ours in bfloat16 and PyTorch's with channels last,
autocast to bfloat16 and torch.compile.

    python -m benchmarks.train --input      the same steps on batches of the input pipeline, and alone
    python -m benchmarks.train --limits     what matrix products and copies of memory reach on this machine
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from importlib import util
from pathlib import Path

import numpy as np

from benchmarks import processes

CLASSES, FRAMES = 174, 8


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", default=["tsn_r18", "adafuse_tsn_r18"])
    parser.add_argument("--image_size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=4, help="clips")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of each measurement")
    parser.add_argument(
        "--one_core", action="store_true", help="processor time on one core: for busy machines"
    )
    parser.add_argument("--input", action="store_true", help="clips/s with the input pipeline and without")
    parser.add_argument("--limits", action="store_true", help="only what the machine reaches")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # framework, model, folder
    args = parser.parse_args()
    if args.one_core:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # its processes inherit it
    if args.measure:
        framework, model, folder = args.measure
        print(json.dumps(measure(framework, model, Path(folder), args)))
        return
    print(f"{len(os.sched_getaffinity(0))} cores, load average {os.getloadavg()[0]:.1f}", flush=True)
    if args.limits:
        print_limits()
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.input:
            from benchmarks import input as reading
            from benchmarks import video_files

            print(video_files.make(Path(folder), 32, None), flush=True)
            reading.prepare(Path(folder), short_side=256)
            frameworks = ("jax", "jax_input")
        else:
            frameworks = ("jax", "torch") if util.find_spec("torch") else ("jax",)
        compare(args, frameworks, folder)


def compare(args: argparse.Namespace, frameworks: tuple[str, ...], folder: str) -> None:
    """Prints a table of all contestants, and their ratios."""
    contestants = [(f, m) for m in args.models for f in frameworks]
    results = {c: [] for c in contestants}
    for _ in range(args.turns):
        for framework, model in contestants:
            results[framework, model].append(_in_its_own_process(args, framework, model, folder))
    print(
        f"\n{args.batch} clips of {FRAMES} x {args.image_size} x {args.image_size}, {args.turns} turns of "
        f"{args.steps} steps, medians\n{'':<28}ms a step   clips/s   peak MB   parameters   first step, s"
    )
    times = {}
    for (framework, model), found in results.items():
        times[framework, model] = np.array([f["seconds"] for f in found])
        seconds = np.median(times[framework, model])
        # Compiled in the first turn, read from the cache after it.
        first = f"{found[0]['first']:.1f}" + (f", then {found[-1]['first']:.1f}" if len(found) > 1 else "")
        print(
            f"{framework:<10}{model:<18}{1e3 * seconds:>8.0f}{args.batch / seconds:>10.2f}"
            f"{max(f['peak_mb'] for f in found):>10.0f}{found[0]['parameters']:>13,}   {first}"
        )
    print()
    for model in args.models:
        for other in frameworks[1:]:
            print(f"{model}: jax over {other}, step {_spread(times['jax', model] / times[other, model])}")
    for model in args.models:
        plain = model.removeprefix("adafuse_")
        if plain != model and plain in args.models:
            for framework in frameworks:
                ratios = times[framework, model] / times[framework, plain]
                print(f"{framework}: {model} over {plain}, step {_spread(ratios)}")


def _in_its_own_process(args: argparse.Namespace, framework: str, model: str, folder: str) -> dict:
    options = ["--image_size", str(args.image_size), "--batch", str(args.batch), "--steps", str(args.steps)]
    options += ["--one_core"] * args.one_core
    arguments = ["--measure", framework, model, folder, *options]
    return processes.run("benchmarks.train", arguments, torch=framework == "torch")


def measure(framework: str, model: str, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Of one contestant: seconds of a step and of the first one, peak memory and parameters."""
    threads = len(os.sched_getaffinity(0))
    if framework == "torch":
        import torch

        from benchmarks import torch_model

        gpu = torch.cuda.is_available()
        parameters, step = torch_model.make_step(
            model, CLASSES, args.batch, args.image_size, "cuda" if gpu else "cpu", threads
        )
    else:
        parameters, step, gpu = _our_step(model, folder, args, framework == "jax_input")
    clock = time.process_time if args.one_core else time.perf_counter
    start = clock()
    step()
    first = clock() - start
    step()
    times = []
    for _ in range(args.steps):
        start = clock()
        step()
        times.append(clock() - start)
    if framework != "torch" and "torch" in sys.modules:
        raise RuntimeError("torch was imported beside ours")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    if gpu and framework == "torch":
        peak = torch_model.peak_device_mb()
    elif gpu:
        import jax

        peak = jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 1e6
    # With input the mean: a batch that comes late counts.
    seconds = np.mean(times) if framework == "jax_input" else np.median(times)
    return {"seconds": float(seconds), "first": first, "peak_mb": peak, "parameters": parameters}


def _our_step(model: str, folder: Path, args: argparse.Namespace, with_input: bool):
    import jax

    from adafuse_jax import memory
    from adafuse_jax.config import Config
    from adafuse_jax.input import pipeline
    from adafuse_jax.train import mesh, run
    from adafuse_jax.train import state as states
    from adafuse_jax.train.optim import make_optimizer
    from adafuse_jax.train.step import make_train_step

    memory.keep_freed()
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    gpu = jax.default_backend() != "cpu"
    data = {"num_classes": CLASSES, "image_size": args.image_size, "num_frames": FRAMES, "threads": 1}
    if with_input:
        data |= {"num_classes": 1}  # as the clips have
        data |= {"name": "prepared", "prepared_dir": str(folder / "prepared/video_list/1.0.0")}
    config = Config.from_dict(
        {
            "model": {"name": model},
            "data": data,
            "train": {
                "batch_size": args.batch,
                "eval_batch_size": args.batch,
                "precision": "bfloat16" if gpu else "float32",
            },
            "loss": {"flops_weight": 0.1},
        }
    )
    parts = run.build(config, jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer, parts.params, 100, 1000)
    state = jax.device_put(
        states.initial(parts.params, parts.stats, optimizer), mesh.replicated(parts.devices)
    )
    compiled = make_train_step(parts.graph, config, optimizer, 1000, parts.devices)
    clips = (args.batch, FRAMES, args.image_size, args.image_size, 3)
    fixed = {
        "clip": np.random.default_rng(0).integers(0, 256, clips, np.uint8),
        "label": np.arange(args.batch, dtype=np.int32) % CLASSES,
        "weight": np.ones(args.batch, np.float32),
    }
    batches = (
        pipeline.make_train(config, batch_size=args.batch, seed=0) if with_input else iter(lambda: fixed, 0)
    )
    key = jax.random.key(0)

    def step():
        nonlocal state
        state, metrics = compiled(state, mesh.put(next(batches), parts.devices), key)
        jax.block_until_ready((state, metrics))

    return sum(p.size for p in jax.tree.leaves(parts.params)), step, gpu


def print_limits() -> None:
    """Prints what float32 matrix products and copies reach, in XLA."""
    import jax
    import jax.numpy as jnp

    def seconds(function, *arrays):
        compiled = jax.jit(function)
        times = []
        for _ in range(9):
            start = time.perf_counter()
            jax.block_until_ready(compiled(*arrays))
            times.append(time.perf_counter() - start)
        return min(times)

    for m, k, n in ((2048, 2048, 2048), (6272, 64, 64), (1568, 128, 128), (512, 256, 256), (128, 512, 512)):
        a, b = jnp.ones((m, k)), jnp.ones((k, n))
        print(f"({m}, {k}) @ ({k}, {n}): {2 * m * k * n / seconds(jnp.matmul, a, b) / 1e9:.0f} GFLOP/s")
    for mb in (4, 16, 64, 256):
        x = jnp.ones(mb * 250_000)
        print(f"x + 1 of {mb} MB, read and written: {2 * mb / seconds(lambda x: x + 1, x) / 1e3:.1f} GB/s")


def _spread(ratios: np.ndarray) -> str:
    return f"{np.median(ratios):.2f} ({ratios.min():.2f}..{ratios.max():.2f})"


if __name__ == "__main__":
    main()
