"""What policies save of the time on the CPU, beside PyTorch: python -m benchmarks.inference [--turns 5 ...].

Clips of 8 frames at once, and streams one frame after the other, through `adafuse_tsn_*` whose policies are
drawn with given shares of skip, reuse and keep (policy networks still run), or through a trained model by its
own policies: with everything computed (dense) and run compactly, where 0,0,1 computes everything, too. Beside
the times are the MACs that a policy leaves of dense ones. PyTorch's model is `tsn_*` of
benchmarks/torch_model.py, dense and without policies, with BatchNorm folded, channels last, eager or compiled
by inductor: the faster of the two counts (torch is no requirement of this package: `pip install torch
--target DIR`, then `PYTHONPATH=DIR`; without it ours is timed alone). All in float32.

Ours and PyTorch's take turns, each in a process of its own; within a process all take turns again. Ratios are
of one turn; medians (least..most) are printed. Where other work disturbs the clock, `--one_core` takes
processor time. What is compiled is kept between turns in a folder of the benchmark's. By default that takes
minutes, with `--batches 1 4 --threads 1 2` six times as long.

    python -m benchmarks.inference --layers    what share of a matrix product's speed each layer reaches
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import util
from pathlib import Path

import numpy as np

from benchmarks import processes

CLASSES, FRAMES = 174, 8
KINDS = ("clip", "stream")
KEPT = "0,0,1"  # the policy by which compact execution computes all
OWN = "its own"  # of a trained model


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backbones", nargs="+", default=["r18", "r50"])
    parser.add_argument("--checkpoint", type=Path, help="a run's workdir: its model, instead of --backbones")
    parser.add_argument("--video", type=Path, help="a file to look at; default: noise")
    parser.add_argument(
        "--policies",
        nargs="+",
        help=f"SKIP,REUSE,KEEP; default: {KEPT} .35,.25,.4 .5,.3,.2, or of a checkpoint {KEPT} and {OWN!r}",
    )
    parser.add_argument(
        "--group_size", type=int, default=1, help="neighbouring channels that share an action"
    )
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batches", nargs="+", type=int, default=[1], help="clips, and streams")
    parser.add_argument("--threads", nargs="+", type=int, default=[len(os.sched_getaffinity(0))])
    parser.add_argument("--turns", type=int, default=3, help="of processes")
    parser.add_argument("--steps", type=int, default=5, help="turns in a process")
    parser.add_argument(
        "--one_core", action="store_true", help="processor time on one core: for busy machines"
    )
    parser.add_argument("--layers", action="store_true", help="only the layers")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # framework, folder
    args = parser.parse_args()
    args.policies = args.policies or [KEPT, *([OWN] if args.checkpoint else [".35,.25,.4", ".5,.3,.2"])]
    if args.checkpoint:
        args.backbones = [_backbone(args.checkpoint)]
    if args.one_core:
        args.threads = [1]
    if args.measure or args.one_core:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.threads[0] :])
    if args.measure:
        framework, folder = args.measure
        print(json.dumps({"torch": _theirs, "jax": _ours}[framework](args, Path(folder))))
        return
    print(f"{len(os.sched_getaffinity(0))} cores, load average {os.getloadavg()[0]:.1f}", flush=True)
    if args.layers:
        from benchmarks import layers

        for backbone in args.backbones:
            for frames, policies in ((FRAMES, args.policies), (1, ())):  # one frame alone has none to reuse
                layers.measure(backbone, policies, frames, args.image_size, args.steps, _clock(args))
        return
    frameworks = ("jax", "torch") if util.find_spec("torch") else ("jax",)
    with tempfile.TemporaryDirectory() as folder:
        for backbone in args.backbones:
            for batch in args.batches:
                for threads in args.threads:
                    compare(args, frameworks, backbone, batch, threads, folder)


def _backbone(checkpoint: Path) -> str:
    """Of a run's model, which PyTorch's has to be like."""
    config = checkpoint / "config.json"
    if not config.is_file():
        raise SystemExit(f"checkpoint {checkpoint}: expected a run's workdir, found no config.json in it")
    name = json.loads(config.read_text())["model"]["name"]
    names = {f"adafuse_tsn_{backbone}": backbone for backbone in ("r18", "r50")}
    if name not in names:
        raise SystemExit(f"checkpoint {checkpoint}: expected one of {', '.join(names)}, found {name}")
    return names[name]


def compare(
    args: argparse.Namespace,
    frameworks: tuple[str, ...],
    backbone: str,
    batch: int,
    threads: int,
    folder: str,
) -> None:
    """Prints the times of one net, and their ratios."""
    turns = []
    for _ in range(args.turns):
        found = {}
        for framework in frameworks:
            found |= _in_its_own_process(args, framework, backbone, batch, threads, folder)
        turns.append(found)
    times = {name: np.array([turn[name] for turn in turns]) for name in turns[0]}
    print(
        f"\n{backbone}, {args.checkpoint or f'groups of {args.group_size}'}, "
        f"{batch} x {args.image_size}x{args.image_size}, {threads} threads, {args.turns} turns "
        f"of {args.steps}; load average {os.getloadavg()[0]:.1f}"
    )
    for kind in KINDS:
        ways = [f"torch {way}" for way in ("eager", "compiled") if f"{kind} torch {way}" in times]
        faster = min(ways, key=lambda way: np.median(times[f"{kind} {way}"]), default=None)
        for way in [name.removeprefix(f"{kind} ") for name in times if name.startswith(kind)]:
            own = times[f"{kind} {way}"]
            line = f"  {kind:<7}{way:<22}{1e3 * np.median(own):>8.1f} ms"
            if (share := f"MACs {way}") in times:
                line += f"   MACs {np.median(times[share]):.3f}"
            for other in ("dense", f"compact {KEPT}", faster):
                if f"{kind} {other}" in times and other != way:
                    line += f"   over {other} {_spread(own / times[f'{kind} {other}'])}"
            print(line, flush=True)


def _in_its_own_process(
    args: argparse.Namespace, framework: str, backbone: str, batch: int, threads: int, folder: str
) -> dict[str, float]:
    options = {
        "backbones": backbone,
        "batches": batch,
        "threads": threads,
        "image_size": args.image_size,
        "steps": args.steps,
        "group_size": args.group_size,
    }
    options |= {name: of for name in ("checkpoint", "video") if (of := getattr(args, name))}
    arguments = ["--measure", framework, folder, *["--one_core"] * args.one_core]
    arguments += [f"--{name}={value}" for name, value in options.items()]
    return processes.run(
        "benchmarks.inference",
        [*arguments, "--policies", *args.policies],
        torch=framework == "torch",
        variables={"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"},
    )


def _ours(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Median seconds of a batch of clips, or of a frame of each stream, by kind and way; policies' MACs."""
    import jax

    from adafuse_jax import bench, flops, memory
    from adafuse_jax.bench import subject

    memory.keep_freed()  # as the command `adafuse` does
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    if args.checkpoint:
        model, data = subject.of_checkpoint(args.checkpoint, image_size=args.image_size, num_frames=FRAMES)
    else:
        options = {"num_classes": CLASSES, "group_size": args.group_size}
        name = f"adafuse_tsn_{args.backbones[0]}"
        model, data = subject.of_zoo(name, args.image_size, FRAMES, **options)
    clip = subject.clips(data, args.batches[0], args.video)
    runs, shares = {}, {}
    for i, policy in enumerate(args.policies):
        drawn = None
        if policy != OWN:
            drawn = bench.Drawn(model, tuple(map(float, policy.split(","))), len(clip), FRAMES)
        # What is computed densely doesn't depend on the policy.
        prepared = bench.prepare(model, clip, drawn, ("compact",) if i else ("dense", "compact"))
        if prepared.missing:
            raise SystemExit("\n".join(prepared.missing))
        for (kind, execution), run in prepared.named().items():
            runs[f"{kind} {execution}" + (f" {policy}" if execution == "compact" else "")] = run
        cost = flops.count(model, prepared.clip["compact"]().policies, image_size=args.image_size)
        shares[f"MACs compact {policy}"] = float(np.mean(cost.actual) / cost.dense)
    seconds = bench.take_turns(runs, args.steps, clock=_clock(args))
    if "torch" in sys.modules:
        raise RuntimeError("torch was imported beside ours")
    return {name: _of_one(name, float(np.median(of))) for name, of in seconds.items()} | shares


def _theirs(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    import torch

    from benchmarks import torch_model

    def run(model, clip, times):
        def runs():
            for _ in range(times):
                model(clip)

        return runs

    runs = {}
    for kind, frames, times in (("clip", FRAMES, 1), ("stream", 1, FRAMES)):
        made = torch_model.make_inference(f"tsn_{args.backbones[0]}", CLASSES, frames, args.threads[0])
        clip = torch.randn(args.batches[0] * frames, 3, args.image_size, args.image_size)
        clip = clip.contiguous(memory_format=torch.channels_last)
        for way, model in made.items():
            runs[f"{kind} torch {way}"] = run(model, clip, times)
    times = {name: [] for name in runs}
    with torch.no_grad():
        for _ in range(2):
            for run in runs.values():
                run()  # compiles
        clock = _clock(args)
        for _ in range(args.steps):
            for name, run in runs.items():
                start = clock()
                run()
                times[name].append(clock() - start)
    return {name: _of_one(name, float(np.median(of))) for name, of in times.items()}


def _clock(args: argparse.Namespace) -> Callable[[], float]:
    return time.process_time if args.one_core else time.perf_counter


def _of_one(name: str, seconds: float) -> float:
    return seconds / FRAMES if name.startswith("stream") else seconds


def _spread(ratios: np.ndarray) -> str:
    return f"{np.median(ratios):.2f} ({ratios.min():.2f}..{ratios.max():.2f})"


if __name__ == "__main__":
    main()
