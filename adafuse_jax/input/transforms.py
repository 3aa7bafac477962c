"""Crops and flips of a clip (reference.md section 3, "Augmentation"): every frame gets the same one.

Two ways of resizing, on purpose:
- evaluation uses Pillow's bilinear filter, which widens with the scale (antialiasing), as the published
  test pipeline does: a model's accuracy depends on it;
- training uses OpenCV, six times faster: INTER_LINEAR, which equals Pillow's within one level when
  enlarging and differs little at the published scales (crops of 168..256 pixels to 224): on the frames of
  ARID, 320 x 240, by 0.1 of 255 levels on average, and by up to 16 where 240 shrink to 224. From a factor
  of two down it would skip pixels, so there INTER_AREA averages them.
  `python -m benchmarks.input --resize --videos DIR` measures both.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import PIL.Image
from jaxtyping import UInt8

from adafuse_jax.errors import UserError
from adafuse_jax.input.sampling import Draw

Frames = Sequence[UInt8[np.ndarray, "H W 3"]] | UInt8[np.ndarray, "T H W 3"]
Square = UInt8[np.ndarray, "T size size 3"]

_SNAP = 3  # pixels; a crop this close to the output size takes the output size and isn't resampled
_QUARTERS = (
    *((0, 0), (4, 0), (0, 4), (4, 4), (2, 2)),  # corners and centre
    *((0, 2), (4, 2), (2, 4), (2, 0)),  # middles of the sides
    *((1, 1), (3, 1), (1, 3), (3, 3)),  # centres of the quadrants
)


def crop_sizes(width: int, height: int, size: int, scales: Sequence[float]) -> list[tuple[int, int]]:
    """(width, height) of every crop that multi-scale cropping may take: sides at most one scale apart.

    A side is int(short side * scale), snapped to `size` when closer than 3 pixels. Unlike the published
    code, which then pads with black, a side never exceeds the image.

    Args:
        width: of the image, pixels.
        height: of the image, pixels.
        size: side of the output, pixels.
        scales: shares of the short side, in (0, 1].

    Raises:
        UserError: for no scales, or one outside (0, 1].
    """
    if not scales or not all(0 < scale <= 1 for scale in scales):
        raise UserError(f"scales of the crop: expected shares in (0, 1], found {tuple(scales)}")
    short = min(width, height)
    sides = [int(short * scale) for scale in scales]
    sides = [size if abs(side - size) < _SNAP else side for side in sides]
    sides = [min(max(side, 1), short) for side in sides]
    return [(w, h) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]


def crop_offsets(width: int, height: int, crop_width: int, crop_height: int) -> list[tuple[int, int]]:
    """(x, y) of the 13 places a crop may take: on a grid of quarters of the free space, pixels."""
    step_x, step_y = (width - crop_width) // 4, (height - crop_height) // 4
    return [(x * step_x, y * step_y) for x, y in _QUARTERS]


def draw_crop(
    width: int, height: int, size: int, scales: Sequence[float], draw: Draw
) -> tuple[int, int, int, int]:
    """A random crop (width, height, x, y), pixels: first the size is drawn, then the place.

    Args:
        width: of the image, pixels.
        height: of the image, pixels.
        size: side of the output, pixels.
        scales: see `crop_sizes`.
        draw: `draw(n)` is a uniform integer in 0..n-1; called twice.
    """
    sizes = crop_sizes(width, height, size, scales)
    crop_width, crop_height = sizes[int(draw(len(sizes)))]
    offsets = crop_offsets(width, height, crop_width, crop_height)
    return crop_width, crop_height, *offsets[int(draw(len(offsets)))]


def multi_scale_crop(frames: Frames, size: int, scales: Sequence[float], draw: Draw) -> Square:
    """One random crop of all frames (see `draw_crop`), resized to (size, size)."""
    height, width = frames[0].shape[:2]
    w, h, x, y = draw_crop(width, height, size, scales, draw)
    method = cv2.INTER_AREA if min(w, h) >= 2 * size else cv2.INTER_LINEAR
    out = np.empty((len(frames), size, size, 3), np.uint8)
    for frame, place in zip(frames, out, strict=True):
        cv2.resize(frame[y : y + h, x : x + w], (size, size), dst=place, interpolation=method)
    return out


def center_crop(frames: Frames, resize: int, size: int) -> Square:
    """Resizes the short side to `resize` pixels and cuts the central square of `size` pixels.

    The long side becomes int(resize * long / short), the cut starts at round((side - size) / 2), both as
    torchvision does.

    Raises:
        UserError: when `size` exceeds `resize`.
    """
    return crops_along(frames, resize, size, 1)[0]


def crops_along(
    frames: Frames, resize: int, size: int, count: int
) -> UInt8[np.ndarray, "count T size size 3"]:
    """`center_crop`, or three such crops: at the start, centre and end of the long side.

    Three of `size` = `resize` pixels cover an image of up to 3:1 whole: the test of Wang et al., "Non-local
    Neural Networks", CVPR 2018, section 4.1, which TSM calls full resolution.

    Args:
        frames: of the clip.
        resize: short side before the cut, pixels.
        size: side of a crop, pixels.
        count: 1 or 3.

    Raises:
        UserError: when `size` exceeds `resize`, or for another count.
    """
    if size > resize:
        raise UserError(f"centre crop: expected a size of at most the resized side {resize}, found {size}")
    if count not in (1, 3):
        raise UserError(f"crops of a clip: expected 1 or 3, found {count}")
    height, width = frames[0].shape[:2]
    short, lying = min(width, height), width >= height  # resized, both sides may be equal
    width, height = (resize if side == short else int(resize * side / short) for side in (width, height))
    x, y = round((width - size) / 2), round((height - size) / 2)
    places = [(x, y)]
    if count == 3 and lying:
        places = [(left, y) for left in (0, x, width - size)]
    elif count == 3:
        places = [(x, top) for top in (0, y, height - size)]

    def cuts(frame: np.ndarray) -> list[np.ndarray]:
        image = PIL.Image.fromarray(np.ascontiguousarray(frame))
        # Pillow could compute the cut alone (`box`), but then rounds otherwise than the published two steps.
        resized = np.asarray(image.resize((width, height), PIL.Image.Resampling.BILINEAR))
        return [resized[y : y + size, x : x + size] for x, y in places]

    return np.stack([cuts(frame) for frame in frames], axis=1)


def horizontal_flip(frames: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "T H W 3"]:
    """Mirrors every frame, left for right."""
    return frames[:, :, ::-1]
