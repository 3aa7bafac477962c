"""Clips to measure with, as Something-Something V2 ships its own: VP9 in WebM, 427 x 240, 12 frames/s.

Its 220,847 clips take 19.4 GB, 88 kB each, about 2 kB a frame, and so do those here. (Encoded
slowly and well, at the same rate, they take as long to decode.)
Drawn ones are a landscape with detail of all sizes under a moving camera, a textured thing that moves over
it, and a sensor's noise. Real ones are taken from a folder of videos, every second frame, cut to the size.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np

from adafuse_jax.input import check, decode, manifest
from data.encode import to_jpeg

WIDTH, HEIGHT, RATE = 427, 240, 12
BIT_RATE = 187_000  # of VP9, per second
QUALITY = 90  # of the JPEGs, as data.prepare's default
# Each clip counts as so many: Grain's shuffling of fewer than some hundreds of clips takes a while, 0.8 ms a
# clip for 32 of them, which no data set of real size meets (0.02 ms from 10,000 on).
COPIES = 16
TEMPLATE = "img_{:05d}.jpg"


def make(folder: Path, count: int, videos: Path | None) -> str:
    """Writes webm/N.webm, jpeg/N/img_00001.jpg ... of the same frames, and the lists webm.txt and jpeg.txt.

    Args:
        folder: to write to.
        count: clips.
        videos: folder of videos to take the frames from; None draws them.

    Returns:
        What was made, in a line.
    """
    lines = {"webm": [], "jpeg": []}
    sizes, total = [], 0
    for i, frames in enumerate(itertools.islice(_real(videos) if videos else _drawn(), count)):
        path = folder / f"webm/{i}.webm"
        path.parent.mkdir(parents=True, exist_ok=True)
        _encode(path, frames)
        sizes.append(path.stat().st_size)
        frames = decode.read_frames(manifest.Clip(path, 0), range)
        total += len(frames)
        jpegs = folder / f"jpeg/{i}"
        jpegs.mkdir(parents=True)
        for number, frame in enumerate(frames, 1):
            (jpegs / TEMPLATE.format(number)).write_bytes(to_jpeg(frame, QUALITY))
        for copy in range(COPIES):
            link = path.with_stem(f"{i}_{copy}")
            link.hardlink_to(path)
            lines["webm"].append(f"webm/{link.name} 0\n")
        lines["jpeg"].append(f"jpeg/{i} {len(frames)} 0\n")
    for name, text in lines.items():
        (folder / f"{name}.txt").write_text("".join(text), encoding="utf-8")
    kind = f"of {videos}" if videos else "drawn"
    return (
        f"{len(sizes)} clips {kind}, each {COPIES} times, {WIDTH} x {HEIGHT}, "
        f"{total / len(sizes):.0f} frames at {RATE}/s, "
        f"VP9 {np.mean(sizes) / 1e3:.0f} kB (Something-Something V2: 88 kB)"
    )


def _encode(path: Path, frames: list[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        options = {"deadline": "realtime", "cpu-used": "8"}  # quick to encode
        stream = container.add_stream("libvpx-vp9", rate=RATE, bit_rate=BIT_RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _real(videos: Path) -> Iterator[list[np.ndarray]]:
    for path in sorted(p for p in videos.rglob("*") if p.suffix in check.VIDEO_SUFFIXES):
        frames = decode.read_frames(manifest.Clip(path, 0), lambda n: range(0, n, 2)[:60])
        height, width = frames[0].shape[:2]
        scale = max(WIDTH / width, HEIGHT / height)
        size = (max(WIDTH, round(width * scale)), max(HEIGHT, round(height * scale)))
        yield [cv2.resize(frame, size)[:HEIGHT, :WIDTH] for frame in frames]


def _drawn() -> Iterator[list[np.ndarray]]:
    for seed in itertools.count():
        rng = np.random.default_rng(seed)
        yield _draw(rng, int(rng.integers(36, 55)))


def _draw(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    ground, thing = _texture(rng, 800), _texture(rng, 128)
    moments = np.arange(count) / RATE
    # Offsets in pixels: a camera in the hand, and a thing that crosses about half the picture.
    camera = 20 * np.sin(rng.uniform(0.5, 2, (2, 1)) * moments + rng.uniform(0, 6, (2, 1))).T + 100
    path = rng.uniform((50, 50), (240, 60)) + rng.uniform(-1, 1, 2) * np.linspace(-50, 50, count)[:, None]
    mask = np.zeros((128, 128, 1), np.float32)
    cv2.circle(mask, (64, 64), 60, 1.0, -1)
    noise = rng.normal(0, 2, (4, HEIGHT, WIDTH, 3)).astype(np.float32)
    frames = []
    for i, (shift, place) in enumerate(zip(camera, path, strict=True)):
        matrix = np.array([[1, 0, -shift[0]], [0, 1, -shift[1]]])
        frame = cv2.warpAffine(ground, matrix, (WIDTH, HEIGHT))
        x, y = place.astype(int)
        frame[y : y + 128, x : x + 128] += mask * (thing - frame[y : y + 128, x : x + 128])
        frames.append(np.clip(frame + noise[i % 4], 0, 255).astype(np.uint8))
    return frames


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """float32 (size, size, 3) of brightnesses about 120, half as much contrast at every halving of scale."""
    total = np.full((size, size, 3), 120, np.float32)
    cells, strength = 4, 40.0
    while cells < size:
        grid = rng.standard_normal((cells, cells, 1)) + 0.3 * rng.standard_normal((cells, cells, 3))
        grid = grid.astype(np.float32)
        total += strength * cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
        cells, strength = 2 * cells, 0.6 * strength
    return total
