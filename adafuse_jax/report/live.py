"""What `adafuse stream` shows: lines that renew themselves, or a line a frame; and a video with captions."""

import collections
import contextlib
from fractions import Fraction
from pathlib import Path
from typing import TextIO

import av
import cv2
import numpy as np

from adafuse_jax.errors import UserError
from adafuse_jax.input.decode import FAILURES, Image
from adafuse_jax.live import Seen
from adafuse_jax.report import saved

_BAR = 20  # characters of a whole bar
_CLIPS = 10  # of which a summary tells
_LETTERS = {"keep": "#", "reuse": "=", "skip": "."}


def line(time: float, seen: Seen) -> str:
    """A frame in one line."""
    name, probability = seen.classes[0]
    shares = "  ".join(f"{action} {share:4.0%}" for action, share in seen.shares.items())
    return f"{time:8.2f} s  {probability:4.0%} {name}   {_cost(seen)}   {shares}".rstrip()


def lines(time: float, seen: Seen, top: int = 5) -> list[str]:
    """A frame in several lines: classes and sites with bars."""
    shown = [f"{time:8.2f} s   frame {seen.frame} of clip {seen.clip}   {_cost(seen)}"]
    width = max(len(name) for name, _ in seen.classes)
    for name, probability in seen.classes[:top]:
        shown.append(f"  {name:{width}}  {'#' * round(_BAR * probability):{_BAR}} {probability:6.1%}")
    for site, shares in seen.sites.items():
        shown.append(f"  {site:14} {_bar(shares)} " + "  ".join(f"{a} {s:4.0%}" for a, s in shares.items()))
    return shown


def _bar(shares: dict[str, float]) -> str:
    ends = np.round(_BAR * np.cumsum([shares.get(action, 0.0) for action in _LETTERS])).astype(int)
    counts = np.diff(ends, prepend=0)
    return "".join(letter * int(n) for letter, n in zip(_LETTERS.values(), counts, strict=True)).ljust(_BAR)


def _cost(seen: Seen) -> str:
    share = seen.gmacs / seen.dense_gmacs
    return f"{1000 * seen.seconds:6.1f} ms   {seen.gmacs:.4g} of {seen.dense_gmacs:.4g} GMACs ({share:.0%})"


class Screen:
    """Shows frame after frame: on a terminal in place, else a line each.

    Args:
        file: to write to.
    """

    def __init__(self, file: TextIO):
        self._file, self._terminal, self._height = file, file.isatty(), 0

    def show(self, time: float, seen: Seen) -> None:
        """Shows a frame instead of the one before."""
        if self._terminal:
            shown = lines(time, seen)
            back = f"\x1b[{self._height}F\x1b[J" if self._height else ""
            self._file.write(back + "\n".join(shown) + "\n")
            self._height = len(shown)
        else:
            self._file.write(line(time, seen) + "\n")
        self._file.flush()


class Summary:
    """A stream of a frame or more, in constant memory: the time and cost of frames, what the last clips were.

    Args:
        dense_seconds: that a frame takes with everything computed, where what is seen is executed compactly.
    """

    def __init__(self, dense_seconds: float | None = None):
        self._dense_seconds = dense_seconds
        self._frames, self._gmacs, self._dense = 0, 0.0, 0.0
        self._took: collections.deque[float] = collections.deque(maxlen=10_000)
        self._clips: dict[int, Seen] = {}

    def add(self, seen: Seen) -> None:
        """Takes in a frame."""
        self._frames += 1
        self._gmacs += seen.gmacs
        self._dense = seen.dense_gmacs
        self._took.append(seen.seconds)
        self._clips[seen.clip] = seen
        self._clips.pop(seen.clip - _CLIPS, None)

    def __str__(self) -> str:
        took, gmacs = np.array(self._took), self._gmacs / self._frames
        usual = np.median(took)
        seconds = (None, usual) if self._dense_seconds is None else (usual, self._dense_seconds)
        most = 1000 * np.percentile(took, 95)
        text = [f"frames   {self._frames} in {max(self._clips)} clips, 95% within {most:.1f} ms"]
        text += saved.side_by_side(gmacs, self._dense, *seconds, per="a frame")
        for number, last in self._clips.items():
            text.append(f"clip {number:<4}" + "  ".join(f"{p:6.1%} {name}" for name, p in last.classes[:3]))
        return "\n".join(text)


class Captioned:
    """A video file of the frames with what was seen in them.

    Args:
        path: of the file; its ending says the container, as .mp4.
        rate: frames a second.

    Raises:
        UserError: where it can't be written.
    """

    def __init__(self, path: Path, rate: float):
        self._path, self._rate = path, Fraction(rate).limit_denominator(1001)
        with self._told():
            self._container = av.open(str(path), "w")
        self._stream = None

    def write(self, image: Image, seen: Seen | None) -> None:
        """Adds a frame; without captions where nothing was seen yet."""
        image = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
        with self._told():
            if self._stream is None:
                self._stream = self._container.add_stream("libx264", rate=self._rate)
                self._stream.pix_fmt = "yuv420p"
                self._stream.height, self._stream.width = image.shape[:2]
            shown = image if seen is None else captioned(image, seen)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), format="rgb24")
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Ends the file."""
        with self._told():
            if self._stream is not None:
                self._container.mux(self._stream.encode())
            self._container.close()

    def __enter__(self) -> "Captioned":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @contextlib.contextmanager
    def _told(self):
        try:
            yield
        except FAILURES as error:
            raise UserError(
                f"--out {self._path}: expected to write a video there, found: "
                f"{getattr(error, 'strerror', None) or error}"
            ) from error


_COLOURS = {"keep": (49, 130, 189), "reuse": (253, 174, 107), "skip": (217, 217, 217)}


def captioned(image: Image, seen: Seen) -> Image:
    """The image with classes and cost on top and, at the bottom, a bar of the actions of each site."""
    image = image.copy()
    height, width = image.shape[:2]
    unit = max(height / 480, 0.4)
    texts = [f"{p:4.0%} {name}" for name, p in seen.classes[:3]]
    texts.append(
        f"{1000 * seen.seconds:.1f} ms, {seen.gmacs / seen.dense_gmacs:.0%} of {seen.dense_gmacs:.3g} GMACs"
    )
    for i, text in enumerate(texts, 1):
        for colour, thick in (((0, 0, 0), 4), ((255, 255, 255), 1)):
            place = (int(8 * unit), int(22 * unit * i))
            cv2.putText(
                image,
                text,
                place,
                cv2.FONT_HERSHEY_SIMPLEX,
                0.6 * unit,
                colour,
                max(1, round(thick * unit)),
                cv2.LINE_AA,
            )
    thick = max(1, min(int(6 * unit), height // 8 // max(len(seen.sites), 1)))
    for row, shares in enumerate(reversed(seen.sites.values())):
        bottom, left = height - row * (thick + 1), 0.0
        for action, colour in _COLOURS.items():
            right = left + width * shares.get(action, 0.0)
            image[bottom - thick : bottom, round(left) : round(right)] = colour
            left = right
    return image
