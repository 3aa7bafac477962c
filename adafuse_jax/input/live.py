"""Frames as they come: of a video file, a camera, or a stream from the network."""

import contextlib
import queue
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av

from adafuse_jax.errors import UserError
from adafuse_jax.input.decode import Image, UnreadableClip, open_video, upright

TIMEOUT = 10.0  # seconds without a word from the network or a camera


class Moment(NamedTuple):
    """A frame of a source.

    Attributes:
        time: seconds since the source's first frame.
        image: RGB, upright.
        due: whether it is one to look at; see `frames`.
    """

    time: float
    image: Image
    due: bool


def is_live(source: str) -> bool:
    """Whether a source doesn't wait: a camera (its number, or a device) or an address such as rtsp://..."""
    return source.isdecimal() or source.startswith("/dev/") or "://" in source


def frames(source: str, per_second: float, every: bool = False) -> Iterator[Moment]:
    """The frames of a source, as many a second of its time as asked for, or all it has where those are fewer.

    A file waits: each due frame is given. What is live doesn't: while a frame is looked at, those that come
    meanwhile are passed over, and the newest is next.

    Args:
        source: a file, the number or device of a camera, or an address that FFmpeg opens.
        per_second: frames to look at in a second of the source.
        every: also give a file's frames in between, as not due.

    Raises:
        UserError: where it can't be opened or read, or is silent for `TIMEOUT`.
    """
    if is_live(source):
        return _newest(_moments(source, per_second, False))
    if not Path(source).is_file():
        raise UserError(f"video {source}: expected a file, a camera's number or an address, found none")
    return _moments(source, per_second, every)


def rate(source: str) -> float:
    """Frames a second of a source, as it says; 25 where it doesn't.

    Raises:
        UserError: as `frames`.
    """
    with _opened(source) as (_, stream):
        return float(stream.average_rate or 25)


@contextlib.contextmanager
def _opened(source: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    name, options = source, {}
    if source.isdecimal() or source.startswith("/dev/"):
        apple = sys.platform == "darwin"
        options["format"] = "avfoundation" if apple else "v4l2"
        name = f"/dev/video{source}" if source.isdecimal() and not apple else source
    if "://" in source:
        options["timeout"] = TIMEOUT
    try:
        with open_video(name, **options) as opened:
            yield opened
    except UnreadableClip as error:
        silent = isinstance(error.__cause__, av.error.ExitError)  # how PyAV tells that time is up
        reason = f"nothing for {TIMEOUT:.0f} s" if silent else error.reason
        raise UserError(f"video {source}: expected to read it, found: {reason}") from error


def _moments(source: str, per_second: float, every: bool) -> Iterator[Moment]:
    # Half a frame's length early is on time: stored times are rounded.
    with _opened(source) as (container, stream):
        step = 1 / float(stream.average_rate or 25)
        first, due_at = None, 0.0
        for number, frame in enumerate(container.decode(stream)):
            at = number * step if frame.time is None else frame.time
            first = at if first is None else first
            due = at - first >= due_at - step / 2
            if due:
                due_at = max(due_at + 1 / per_second, at - first)
            if due or every:
                yield Moment(at - first, upright(frame), due)
    if first is None:
        raise UserError(f"video {source}: expected frames, found none")


def _newest(moments: Iterator[Moment]) -> Iterator[Moment]:
    box: queue.Queue[Moment | Exception | None] = queue.Queue(1)
    ended = threading.Event()

    def offer(item) -> None:
        with contextlib.suppress(queue.Empty):
            if isinstance(item, Moment):  # an end waits until the last frame is taken
                box.get_nowait()
        while not ended.is_set():
            with contextlib.suppress(queue.Full):
                return box.put(item, timeout=0.1)

    def read() -> None:
        end = None
        try:
            for moment in moments:
                if ended.is_set():
                    return
                offer(moment)
        except Exception as error:  # whatever it is, whoever waits for a frame is to hear of it
            end = error
        offer(end)

    threading.Thread(target=read, daemon=True, name="live").start()
    try:
        while (found := box.get()) is not None:
            if isinstance(found, Exception):
                raise found
            yield found
    finally:
        ended.set()
