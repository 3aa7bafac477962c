"""Frames of a clip: of a video file of any codec that PyAV reads, or of a folder of JPEGs.

Every video is decoded to its end, whichever frames are wanted: the count in a file's header may be wrong
or missing (0 for WebM), and so a clip reads or doesn't, whatever frames a draw picks. Only the wanted
frames become RGB. A file that was cut off but decodes without an error gives what is there;
`adafuse check-data` tells which those are.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from adafuse_jax.input.manifest import Clip

Image = UInt8[np.ndarray, "H W 3"]

NO_VIDEO = "no video stream"  # a reason that `adafuse check-data` counts apart

# av raises its own errors and, for odd streams, plain ones: a pixel format that swscale doesn't know, a
# picture too large to hold.
FAILURES = (av.FFmpegError, OSError, ValueError, RuntimeError, MemoryError, cv2.error)


class UnreadableClip(Exception):
    """A clip, or a file of it, that can't be read; `path` and `reason` say which and why."""

    def __init__(self, path: Path | str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def num_frames(clip: Clip) -> int:
    """Number of frames: those a video decodes to, or those the list states for a JPEG folder.

    Raises:
        UnreadableClip: when a video can't be decoded to its end.
    """
    return clip.num_frames or len(_decode(clip.path, set())[1])


def read_frames(
    clip: Clip,
    choose: Callable[[int], Sequence[int]],
    frame_template: str = "img_{:05d}.jpg",
    fast: bool = False,
) -> list[Image]:
    """The chosen frames of a clip in RGB, turned upright, as their file's orientation asks.

    Args:
        clip: a video file or a JPEG folder.
        choose: given the number of frames N, the wanted indices in 0..N-1, in presentation order. In a
            video whose rate varies they mean N moments evenly spaced in time, see `frames_on_screen`.
            Called again with the true number where the file's packets told another.
        frame_template: file name of a JPEG, given its 1-based number.
        fast: of JPEGs, see `decode_image`.

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
        frames = {i: read_image(clip.path / frame_template.format(i + 1), fast) for i in set(indices)}
    sizes = {frame.shape for frame in frames.values()}
    if len(sizes) > 1:
        raise UnreadableClip(clip.path, f"expected frames of one size, found {sorted(sizes)}")
    return [frames[i] for i in indices]


def frames_on_screen(times: Sequence[int | None]) -> list[int]:
    """The frame on screen in the middle of each of N equal parts of a clip's time; N is its number of frames.

    At a constant rate that is frame i in part i, and so the published sampling by index holds as it is.
    A rate counts as constant while no frame lies further than the mean interval from its place, and when
    times are missing or don't rise: AVI stores none, and those made up for it are wrong where frames are
    stored out of order.

    Args:
        times: of each frame, in presentation order and whole units of any kind.
    """
    last = len(times) - 1
    constant = np.arange(last + 1)
    if last < 1 or None in times or np.diff(times).min() <= 0:
        return constant.tolist()
    since = np.subtract(times, times[0])
    if np.abs(last * since - constant * since[-1]).max() <= since[-1]:
        return constant.tolist()
    return (np.searchsorted(2 * last * since, (2 * constant + 1) * since[-1], side="right") - 1).tolist()


def _read_video(path: Path, choose: Callable[[int], Sequence[int]]) -> tuple[dict[int, Image], list[int]]:
    shown = frames_on_screen(_packet_times(path))
    for _ in range(2):  # at worst the first pass, expecting wrong, counts and the second reads
        wanted = [shown[int(i)] for i in choose(len(shown))] if shown else []
        frames, times = _decode(path, set(wanted))
        found = frames_on_screen(times)
        if found == shown:
            return frames, wanted
        shown = found
    raise UnreadableClip(path, "another number of frames at each reading")


def _packet_times(path: Path) -> list[int | None]:
    """When the packets are shown: cheap, and for most files what decoding will give."""
    with open_video(path) as (container, stream):
        times = [packet.pts for packet in container.demux(stream) if packet.size and not packet.is_discard]
    return times if None in times else sorted(times)


def _decode(path: Path, wanted: set[int]) -> tuple[dict[int, Image], list[int | None]]:
    """The wanted frames and the times of all frames (at least 1), in one pass to the end of the file."""
    frames, times = {}, []
    with open_video(path) as (container, stream):
        for frame in container.decode(stream):
            if len(times) in wanted:
                frames[len(times)] = upright(frame)
            times.append(frame.pts)
    if not times:
        raise UnreadableClip(path, "no frames in the video stream")
    return frames, times


@contextlib.contextmanager
def open_video(path: Path | str, **options) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """An opened file and its main video stream; failures inside the block become `UnreadableClip`.

    `options` go to `av.open`, for what isn't a file.

    Decoding runs in the caller's thread: the pipeline reads several clips at once, and where a decoding
    error shows doesn't depend on the machine.
    """
    try:
        # Titles in another encoding than UTF-8 don't matter here.
        with av.open(str(path), metadata_errors="replace", **options) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise UnreadableClip(path, NO_VIDEO)
            if stream.codec_context is None:
                raise UnreadableClip(path, "no decoder for the video stream")
            stream.codec_context.thread_count = 1
            yield container, stream
    except FAILURES as error:
        raise UnreadableClip(path, getattr(error, "strerror", None) or str(error)) from error


def upright(frame: av.VideoFrame) -> Image:
    """A frame in RGB, turned and mirrored by quarters as its display matrix says.

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


def read_image(path: Path, fast: bool = False) -> Image:
    """A JPEG in RGB, turned upright.

    Args:
        path: of the file.
        fast: see `decode_image`.

    Raises:
        UnreadableClip: when it is missing, broken or cut off.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableClip(path, error.strerror or str(error)) from error
    return decode_image(data, path, fast)


def decode_image(data: bytes, path: Path, fast: bool = False) -> Image:
    """The bytes of a JPEG in RGB, turned upright as their Exif data say.

    Args:
        data: of the file.
        path: where they come from, for the error.
        fast: in an eighth less time, for training: chroma stored at half the size is repeated, not
            interpolated. On the drawn frames of `benchmarks.input` that changes a pixel by 0.1 of 255 levels
            on average, and one at a sharp edge of colour by up to 20. (libjpeg's fast DCT would save
            another 4%, but darkens all pixels by 0.8 levels.)

    Raises:
        UnreadableClip: when they are broken or cut off.
    """
    # simplejpeg turns no image upright. What it doesn't accept, OpenCV decides on: it may be another format.
    if fast and b"Exif\0" not in data:
        with contextlib.suppress(ValueError):
            return simplejpeg.decode_jpeg(data, fastupsample=True)
    try:
        # From memory, not by imread: that fills what is missing of a truncated file with grey.
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except FAILURES as error:
        raise UnreadableClip(path, "not an image") from error
    if image is None:
        raise UnreadableClip(path, "a broken image, or not one")
    return image
