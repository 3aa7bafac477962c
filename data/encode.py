"""From a clip's file or folder to what is stored of it: JPEGs, their indices, the number of frames."""

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image

from adafuse_jax.input import decode
from adafuse_jax.input.prepared import stored_indices
from data.listing import Item


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A clip to be stored.

    Attributes:
        record: by the fields of `adafuse_jax.input.prepared`.
        seconds: its length; 0 where it isn't known.
    """

    record: dict[str, Any]
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class VideoEncoder:
    """Encodes video files and JPEG folders (`Item.source` is a `manifest.Clip`).

    Frames shrink to the short side, never grow. The JPEGs of a folder that needn't shrink are stored byte
    for byte as they are.

    Attributes:
        short_side: pixels.
        quality: of new JPEGs, 1..100.
        max_frames: evenly spaced frames stored of a clip, see `stored_indices`; 0 stores all.
        template: file name of a JPEG in a folder, given its 1-based number.
        fps: of JPEG folders, for the length of clips; 0 where it isn't known.
        folders: clips are JPEG folders; one whose number of frames isn't stated has what it holds.
    """

    short_side: int = 256
    quality: int = 90
    max_frames: int = 32
    template: str = "{:05d}.jpg"
    fps: float = 0.0
    folders: bool = False

    def __call__(self, item: Item) -> Encoded:
        """The clip, encoded.

        Raises:
            UnreadableClip: for what `decode.read_frames` refuses, and a folder with gaps.
        """
        clip = item.source
        if clip.num_frames is None and not self.folders:
            num_frames, indices, frames = self._video(clip)
            seconds = _seconds(clip.path, num_frames)
        else:
            num_frames = clip.num_frames or self._count(clip.path)
            indices = stored_indices(num_frames, self.max_frames)
            frames = self._folder(clip.path, indices)
            seconds = num_frames / self.fps if self.fps else 0.0
        return Encoded(record(item, num_frames, indices, frames), seconds)

    def _video(self, clip) -> tuple[int, np.ndarray, list[bytes]]:
        def choose(num_frames: int) -> np.ndarray:
            nonlocal total
            total = num_frames
            return stored_indices(num_frames, self.max_frames)

        total = 0
        frames = decode.read_frames(clip, choose)
        jpegs = [to_jpeg(shrink(frame, self.short_side), self.quality) for frame in frames]
        return total, stored_indices(total, self.max_frames), jpegs

    def _folder(self, folder: Path, indices: np.ndarray) -> list[bytes]:
        jpegs, sizes = [], set()
        for path in (folder / self.template.format(i + 1) for i in indices):
            try:
                data = path.read_bytes()
            except OSError as error:
                raise decode.UnreadableClip(path, error.strerror or str(error)) from error
            image = decode.decode_image(data, path)  # a broken one is found here, not in training
            sizes.add(image.shape)
            small = shrink(image, self.short_side)
            jpegs.append(data if small is image else to_jpeg(small, self.quality))
        if len(sizes) > 1:
            raise decode.UnreadableClip(folder, f"expected frames of one size, found {sorted(sizes)}")
        return jpegs

    def _count(self, folder: Path) -> int:
        """Number of JPEGs in a folder, numbered from 1 without gaps."""
        try:
            names = {path.name for path in folder.iterdir() if path.suffix == Path(self.template).suffix}
        except OSError as error:
            raise decode.UnreadableClip(folder, error.strerror or str(error)) from error
        if not names:
            raise decode.UnreadableClip(folder, f"expected JPEGs named {self.template.format(1)}, found none")
        for number in range(1, len(names) + 1):
            if (name := self.template.format(number)) not in names:
                raise decode.UnreadableClip(folder, f"expected {name} among {len(names)} JPEGs, found none")
        return len(names)


def record(item: Item, num_frames: int, indices: np.ndarray, frames: list[bytes]) -> dict[str, Any]:
    """The record of a clip, see `adafuse_jax.input.prepared`."""
    return {
        "frames": frames,
        "frame_indices": indices.tolist(),
        "num_frames": num_frames,
        "label": item.label,
        "name": item.name,
    }


def shrink(image: decode.Image, short_side: int) -> decode.Image:
    """The image with its short side at most `short_side`, by the filter of evaluation (Pillow's bilinear)."""
    height, width = image.shape[:2]
    short = min(height, width)
    if short <= short_side:
        return image
    size = tuple(short_side if side == short else int(short_side * side / short) for side in (width, height))
    return np.asarray(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BILINEAR))


def to_jpeg(image: decode.Image, quality: int) -> bytes:
    """The JPEG of an RGB image."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _seconds(path: Path, num_frames: int) -> float:
    """Length of a video at the mean rate its header states; 0 where it states none."""
    with decode.open_video(path) as (_, stream):
        return num_frames / float(stream.average_rate) if stream.average_rate else 0.0
