"""Clips per second of reading training data, side by side: python -m benchmarks.input [--videos DIR].

    prepared   this pipeline from prepared data (ArrayRecord of JPEGs), to uint8 batches
    webm       this pipeline from the videos themselves, to uint8 batches
    pillow     a loader that does what the published one does: one JPEG file a frame opened by Pillow, crop
               and bilinear resize by Pillow, a normalised float batch, in a torch DataLoader (torch is no
               requirement of this package: `pip install torch --target DIR`, then `PYTHONPATH=DIR`)

All read the same clips, the frames and crops of training (T=8, 224 x 224), from files in the cache of the
system. Each measurement is a process of its own, after a warm-up; the contestants take turns, and ratios are
of one turn. A core's share is by processor time, worker processes counted, which other work on the machine
disturbs little; clips per second of the clock it does.

    python -m benchmarks.input --memory     memory over 10,000 batches
    python -m benchmarks.input --resize     what training's way of resizing costs, against Pillow's
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import util
from pathlib import Path

import numpy as np
import PIL.Image

from adafuse_jax.config import Config, Data
from adafuse_jax.input import decode, manifest, pipeline, sampling, transforms
from adafuse_jax.input.check import VIDEO_SUFFIXES
from benchmarks import video_files

BATCH = 16
ROOT = Path(__file__).parent.parent
# Threads of Grain; worker processes of torch, where 0 is the process itself.
CONTESTANTS = {"prepared": (1, 2), "webm": (1, 2), "pillow": (0, 2)}
TARGETS = {"webm": 8, "pillow": 3}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--videos", type=Path, help="folder of videos to make the clips of; default: drawn")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--memory", action="store_true", help="only the memory over 10,000 batches")
    parser.add_argument("--resize", action="store_true", help="only what training's resizing costs")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # one contestant: name, threads, folder
    args = parser.parse_args()
    if args.measure:
        name, threads, folder = args.measure
        print(json.dumps(measure(name, int(threads), Path(folder), args.seconds)))
        return
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if args.resize and args.videos:
            compare_resizing(args.videos)
            return
        print(video_files.make(folder, args.clips, args.videos), flush=True)
        if args.resize:
            compare_resizing(folder / "webm")
            return
        prepare(folder, short_side=72 if args.memory else 256)
        if args.memory:
            watch_memory(folder)
        else:
            compare(folder, args.repeats, args.seconds)


def compare(folder: Path, repeats: int, seconds: float) -> None:
    """Prints a table of all contestants, and what of ours is how many times as fast."""
    contestants = CONTESTANTS
    if not util.find_spec("torch"):
        print("pillow is left out: torch isn't installed")
        contestants = {name: threads for name, threads in CONTESTANTS.items() if name != "pillow"}
    figures = {(name, n): [] for name, threads in contestants.items() for n in threads}
    for _ in range(repeats):
        for (name, n), found in figures.items():
            found.append(_in_its_own_process(name, n, folder, seconds))
    per_core, per_second = ({key: np.array(f)[:, i] for key, f in figures.items()} for i in range(2))
    print(f"\nmedians of {repeats} turns      clips per second of a core's time   of the clock")
    for key in figures:
        cores, clock = np.median(per_core[key]), np.median(per_second[key])
        print(f"{key[0]:<10}{_workers(*key):<18}{cores:>16.1f}{clock:>31.1f}")
    print()
    for name, (one, two) in contestants.items():
        print(
            f"{name}: {_spread(per_second[name, two] / per_second[name, one])}x the clips/s of the clock "
            f"with {_workers(name, two)} as with {_workers(name, one)}"
        )
    for name, target in TARGETS.items():
        if name in contestants:
            ratios = per_core["prepared", 1] / per_core[name, contestants[name][0]]
            print(f"prepared over {name}, a core: {_spread(ratios)}x, wanted {target}x")


def _in_its_own_process(name: str, threads: int, folder: Path, seconds: float) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.input", "--seconds", str(seconds)]
    command += ["--measure", name, str(threads), str(folder)]
    out = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def _workers(name: str, number: int) -> str:
    kind = "worker process" if name == "pillow" else "thread"
    return f"{number} {kind}{'s' * (number != 1) if kind == 'thread' else 'es' * (number != 1)}"


def measure(name: str, threads: int, folder: Path, seconds: float) -> tuple[float, float]:
    """Clips per second of processor time, and of the clock, of one contestant.

    Args:
        name: of the contestant.
        threads: see CONTESTANTS.
        folder: with the clips.
        seconds: to measure for, after the warm-up.
    """
    if name == "pillow":
        from benchmarks import pillow_loader

        batches = pillow_loader.batches(folder / "jpeg.txt", video_files.TEMPLATE, BATCH, workers=threads)
    else:
        batches = _ours(name, folder, threads)
    for _ in range(4):
        next(batches)
    clips, start, cpu = 0, time.perf_counter(), _cpu_seconds()
    while time.perf_counter() < start + seconds:
        next(batches)
        clips += BATCH
    cpu, wall = _cpu_seconds() - cpu, time.perf_counter() - start
    if name != "pillow" and "torch" in sys.modules:
        raise RuntimeError("torch was imported beside our pipeline")
    return clips / cpu, clips / wall


def watch_memory(folder: Path) -> None:
    """Prints the memory of this process while it reads 10,000 batches."""
    batches = _ours("prepared", folder, threads=2, batch=4, image_size=64)
    for number in range(1, 10_001):
        next(batches)
        if number in (100, 1000, 2000, 5000, 10_000):
            print(f"after {number:>6} batches of 4: {_resident_mb():.1f} MB", flush=True)


def compare_resizing(folder: Path) -> None:
    """Prints, for each side of the published crops, how far OpenCV's resizing is from Pillow's, and times.

    Args:
        folder: of JPEG folders or, in any depth, videos: the frames at their own size.
    """
    clips = [manifest.Clip(path, 0) for path in sorted(folder.rglob("*")) if path.suffix in VIDEO_SUFFIXES]
    clips = [decode.read_frames(clip, lambda n: sampling.shifted_indices(n, 8, 1)[0]) for clip in clips[:32]]
    height, width = clips[0][0].shape[:2]
    size, short = 224, min(width, height)
    print(f"{len(clips)} clips of 8 frames of {width} x {height}, central crop to {size} x {size}")
    print("    side   mean difference   largest, levels   OpenCV   Pillow, ms a clip")
    for side in sorted({w for w, _ in transforms.crop_sizes(width, height, size, Data().scales)}):
        scales, centre = (side / short,), lambda n: n - 1 if n == 1 else 4  # of the 13 places
        gaps, ours, pillows = [], [], []
        for frames in clips:
            start = time.thread_time()
            cropped = transforms.multi_scale_crop(frames, size, scales, centre)
            ours.append(time.thread_time() - start)
            x, y = (width - side) // 4 * 2, (height - side) // 4 * 2
            start = time.thread_time()
            box = (x, y, x + side, y + side)
            images = [PIL.Image.fromarray(frame).crop(box) for frame in frames]
            images = [image.resize((size, size), PIL.Image.Resampling.BILINEAR) for image in images]
            pillow = np.stack([np.asarray(image) for image in images])
            pillows.append(time.thread_time() - start)
            gaps.append(np.abs(cropped.astype(int) - pillow))
        mean, most = np.mean([g.mean() for g in gaps]), np.max([g.max() for g in gaps])
        times = 1e3 * np.median(ours), 1e3 * np.median(pillows)
        print(f"{side:>8}{mean:>18.2f}{most:>18}{times[0]:>9.2f}{times[1]:>9.2f}")


def _ours(
    name: str, folder: Path, threads: int, batch: int = BATCH, image_size: int = 224
) -> Iterator[pipeline.Batch]:
    data = Data(num_classes=1, threads=threads, image_size=image_size)
    if name == "webm":
        data = dataclasses.replace(data, train_list=str(folder / "webm.txt"))
    else:
        prepared = folder / "prepared/video_list/1.0.0"
        data = dataclasses.replace(data, name="prepared", prepared_dir=str(prepared))
    return pipeline.make_train(Config(data=data), batch_size=batch, seed=0)


def prepare(folder: Path, short_side: int) -> None:
    """Prepares the clips of `video_files.make` under the folder, as data.prepare does."""
    command = [sys.executable, "-m", "data.prepare", "video_list", "--manual_dir", str(folder)]
    command += ["--data_dir", str(folder / "prepared"), "--train_list", "webm.txt", "--splits", "train"]
    command += ["--short_side", str(short_side), "--quality", str(video_files.QUALITY)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def _cpu_seconds() -> float:
    """Processor time of this process and its worker processes (Linux)."""
    return time.process_time() + sum(
        sum(map(int, Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        / os.sysconf("SC_CLK_TCK")
        for child in multiprocessing.active_children()
    )


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _spread(ratios: np.ndarray) -> str:
    return f"{np.median(ratios):.2f} ({ratios.min():.2f}..{ratios.max():.2f})"


if __name__ == "__main__":
    main()
