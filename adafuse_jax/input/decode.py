"""Frames of a clip: of a video file of any codec that PyAV reads, or of a folder of JPEGs.

Every video is decoded to its end, whichever frames are wanted: the count in a file's header may be wrong
or missing (0 for WebM), and so a clip reads or doesn't, whatever frames a draw picks. Only the wanted
frames become RGB.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
from jaxtyping import UInt8

from adafuse_jax.input.manifest import Clip

Image = UInt8[np.ndarray, "H W 3"]

# av raises its own errors and, for odd streams, plain ones: a pixel format that swscale doesn't know, a
# picture too large to hold.
_FAILURES = (av.FFmpegError, OSError, ValueError, RuntimeError, MemoryError, cv2.error)


class UnreadableClip(Exception):
    """A clip, or a file of it, that can't be read; `path` and `reason` say which and why."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def num_frames(clip: Clip) -> int:
    """Number of frames: those a video decodes to, or those the list states for a JPEG folder.

    Raises:
        UnreadableClip: when a video can't be decoded to its end.
    """
    return clip.num_frames or _decode(clip.path, set())[1]


def read_frames(
    clip: Clip, choose: Callable[[int], Sequence[int]], frame_template: str = "img_{:05d}.jpg"
) -> list[Image]:
    """The chosen frames of a clip in RGB, turned upright, as their file's orientation asks.

    Args:
        clip: a video file or a JPEG folder.
        choose: given the number of frames N, the wanted indices in 0..N-1, in presentation order.
            Called again with the true number where the header's was wrong.
        frame_template: file name of a JPEG, given its 1-based number.

    Returns:
        One uint8 image a chosen index; an index chosen twice is the same array twice.

    Raises:
        UnreadableClip: for a missing file, no video stream, no frames, a decoding error, a broken or
            missing JPEG, or frames of several sizes.
    """
    if clip.num_frames is None:
        frames, indices = _read_video(clip.path, choose)
    else:
        indices = [int(i) for i in choose(clip.num_frames)]
        frames = {i: _read_image(clip.path / frame_template.format(i + 1)) for i in set(indices)}
    sizes = {frame.shape for frame in frames.values()}
    if len(sizes) > 1:
        raise UnreadableClip(clip.path, f"expected frames of one size, found {sorted(sizes)}")
    return [frames[i] for i in indices]


def _read_video(path: Path, choose: Callable[[int], Sequence[int]]) -> tuple[dict[int, Image], list[int]]:
    expected = _expected_frames(path)
    for _ in range(2):  # at worst the first pass, expecting wrong, counts and the second reads
        indices = [int(i) for i in choose(expected)] if expected else []
        frames, found = _decode(path, set(indices))
        if found == expected:
            return frames, indices
        expected = found
    raise UnreadableClip(path, "another number of frames at each reading")


def _expected_frames(path: Path) -> int:
    """The header's number of frames, or of packets where it has none: cheap, and true of most files."""
    with _video(path) as (container, stream):
        return stream.frames or sum(packet.size > 0 for packet in container.demux(stream))


def _decode(path: Path, wanted: set[int]) -> tuple[dict[int, Image], int]:
    """The wanted frames and the number of all frames (at least 1), in one pass to the end of the file."""
    frames, count = {}, 0
    with _video(path) as (container, stream):
        for frame in container.decode(stream):
            if count in wanted:
                frames[count] = _upright(frame)
            count += 1
    if not count:
        raise UnreadableClip(path, "no frames in the video stream")
    return frames, count


@contextlib.contextmanager
def _video(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """An opened file and its main video stream; failures inside the block become UnreadableClip."""
    try:
        # Titles in another encoding than UTF-8 don't matter here.
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise UnreadableClip(path, "no video stream")
            if stream.codec_context is None:
                raise UnreadableClip(path, "no decoder for the video stream")
            # The pipeline reads several clips at once; one thread each also makes where a decoding error
            # shows independent of the machine.
            stream.codec_context.thread_count = 1
            yield container, stream
    except _FAILURES as error:
        raise UnreadableClip(path, getattr(error, "strerror", None) or str(error)) from error


def _upright(frame: av.VideoFrame) -> Image:
    """The frame in RGB, turned and mirrored by quarters as its display matrix says.

    The matrix takes a pixel (p, q), x to the right and y down, to (a p + c q, b p + d q).
    """
    image = frame.to_ndarray(format="rgb24")
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return image
    a, b, _, c, d = np.frombuffer(side_data, np.int32)[:5]
    if abs(a) >= abs(b):
        down, right = d, a
    else:
        image = image.transpose(1, 0, 2)
        down, right = b, c
    return image[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]


def _read_image(path: Path) -> Image:
    try:
        # From memory, not by imread: that fills what is missing of a truncated file with grey.
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except _FAILURES as error:
        raise UnreadableClip(path, getattr(error, "strerror", None) or "not an image") from error
    if image is None:
        raise UnreadableClip(path, "a broken image, or not one")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
