"""Reads one clip as training would and says what is wrong with it; `check` tells what each problem means."""

import hashlib
import math
from pathlib import Path

import av

from adafuse_jax.input import decode
from adafuse_jax.input.manifest import Clip

# A file may end earlier than its header says by this share of the duration, and by these seconds.
_SLACK_SHARE, _SLACK = 0.05, 0.25


class Defect(Exception):
    """A clip not to train on; `problem` is one of check.PROBLEMS, `reason` says what was found."""

    def __init__(self, problem: str, reason: str):
        super().__init__(f"{problem}: {reason}")
        self.problem = problem
        self.reason = reason


def digest(clip: Clip, min_frames: int, frame_template: str) -> bytes:
    """A hash of a clip's bytes, after all its frames have been read.

    Args:
        clip: a video file or a JPEG folder.
        min_frames: a clip of fewer is too short.
        frame_template: file name of a JPEG, given its 1-based number.

    Raises:
        Defect: for a clip not to train on.
    """
    try:
        if not clip.path.exists():
            raise Defect("missing", "no such file or folder")
        if clip.num_frames is None:
            files = [clip.path]
            _read_video(clip.path, min_frames)
        else:
            files = _read_folder(clip, min_frames, frame_template)
        found = hashlib.blake2b()
        for file in files:
            found.update(file.read_bytes())
        return found.digest()
    except decode.UnreadableClip as error:
        problem = "no video" if error.reason == decode.NO_VIDEO else "unreadable"
        reason = error.reason if error.path == clip.path else f"{error.path.name}: {error.reason}"
        raise Defect(problem, reason) from error
    except OSError as error:
        raise Defect("unreadable", error.strerror or str(error)) from error


def _read_video(path: Path, min_frames: int) -> None:
    if not path.stat().st_size:
        raise Defect("empty", "0 bytes")
    try:
        reached, promised = _extent(path)
    except decode.UnreadableClip as error:
        if _lacks_bytes(path):
            raise Defect("truncated", f"ends before its contents do ({error.reason})") from error
        raise
    if promised - reached > max(_SLACK, _SLACK_SHARE * promised):
        raise Defect("truncated", f"ends at {reached:.2f} s of {promised:.2f} s")
    count, damaged, looks = 0, 0, set()
    try:
        with decode.open_video(path) as (container, stream):
            for frame in container.decode(stream):
                look = (frame.width, frame.height, frame.format.name)
                if look not in looks:
                    decode.upright(frame)  # fails for what can't become RGB
                    looks.add(look)
                count += 1
                damaged += frame.is_corrupt
    except decode.UnreadableClip as error:
        raise Defect("unreadable", f"{error.reason}, after {count} frames") from error
    _check_count(count, min_frames)
    _check_sizes({(width, height) for width, height, _ in looks})
    if damaged:
        raise Defect("damaged", f"{damaged} of {count} frames")


def _extent(path: Path) -> tuple[float, float]:
    """Seconds up to where the longest stream ends, and seconds that the header states (0 for unknown).

    The header's duration is that of the longest stream, so sound that outlasts the pictures is no loss.
    """
    first, last = math.inf, -math.inf
    with decode.open_video(path) as (container, stream):
        for packet in container.demux():
            start = packet.dts if packet.pts is None else packet.pts
            if packet.size and start is not None:
                first = min(first, start * packet.time_base)
                last = max(last, (start + (packet.duration or 0)) * packet.time_base)
        promised = (container.duration or 0) / av.time_base
        if container.format.name == "avi" and stream.average_rate:
            # FFmpeg shortens the duration of an AVI to what it finds; the header's count stays.
            promised = max(promised, stream.frames / stream.average_rate)
        if "matroska" in container.format.name:
            first = min(first, 0)  # its duration counts from 0
    if last <= first:  # no times, or a single frame that doesn't say how long it stays
        return 0.0, 0.0
    return float(last - first), float(promised)


def _lacks_bytes(path: Path) -> bool:
    """Whether an MP4's or MOV's boxes, or an AVI's chunk, state more bytes than the file has."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if head[:4] == b"RIFF":
            return 8 + int.from_bytes(head[4:8], "little") > size
        if head[4:8] not in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
            return False
        start = 0
        while start < size:
            file.seek(start)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:  # a 64-bit length follows the name
                length = int.from_bytes(head[8:], "big")
            if length < 8:  # 0: up to the file's end; or no box
                return False
            start += length
    return start > size


def _read_folder(clip: Clip, min_frames: int, frame_template: str) -> list[Path]:
    """The files of a JPEG folder's frames."""
    files = [clip.path / frame_template.format(number) for number in range(1, clip.num_frames + 1)]
    if not any(clip.path.iterdir()):
        raise Defect("empty", "a folder without files")
    if absent := [file.name for file in files if not file.exists()]:
        reason = f"{len(absent)} of {clip.num_frames} frames, the first is {absent[0]}"
        raise Defect("missing", reason)
    _check_count(clip.num_frames, min_frames)
    _check_sizes({decode.read_image(file).shape[1::-1] for file in files})
    return files


def _check_count(count: int, min_frames: int) -> None:
    if count < min_frames:
        raise Defect("too short", f"expected at least {min_frames} frames, found {count}")


def _check_sizes(sizes: set[tuple[int, int]]) -> None:
    if len(sizes) > 1:
        found = " and ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise Defect("unreadable", f"expected frames of one size, found {found}")
