"""Reads every clip of a list or folder as training would, and says what is wrong with which.

missing      the file or folder isn't there, or frames that the list counts on aren't
empty        a file of 0 bytes, a folder without files
truncated    cut off: no stream comes near the duration that the header states. Most such files of WebM, MKV
             or AVI decode without an error; training then reads what is there, and only this check tells.
             A file that states no duration (MPEG-TS, MPEG-PS, live WebM) never counts as truncated.
no video     no video stream, as in a file of sound alone
too short    fewer frames than wanted, by default 3
unreadable   an error in opening or decoding, or frames of several sizes
damaged      decodes, but to frames that the decoder had to patch; training reads them as they are
wrong label  a line without a label in 0..C-1, or of neither form that `manifest.read_list` knows
duplicate    a path listed before, or the same bytes as a clip before it, which stays
"""

import collections
import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import tqdm

from adafuse_jax.errors import UserError
from adafuse_jax.input import defects, manifest
from adafuse_jax.input.manifest import Clip

PROBLEMS = (
    *("missing", "empty", "truncated", "no video", "too short", "unreadable", "damaged"),
    *("wrong label", "duplicate"),
)
VIDEO_SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)
_SHOWN = 3  # clips named in the summary for each problem


@dataclasses.dataclass(frozen=True)
class Entry:
    """A clip and what is wrong with it.

    Attributes:
        name: its path, or the whole line where that is no clip.
        clip: None for such a line.
        line: 1-based number in the list; None for a clip found in a folder.
        problem: one of PROBLEMS, empty for a good clip.
        reason: what was found.
        digest: of its bytes, where it is good.
    """

    name: str
    clip: Clip | None
    line: int | None = None
    problem: str = ""
    reason: str = ""
    digest: bytes = b""


@dataclasses.dataclass(frozen=True)
class Report:
    """All clips of a source.

    Attributes:
        source: the list or folder.
        entries: in the order of the list, or by class and name.
        num_classes: C; 0 for a folder of videos without labels.
        class_names: in label order, of a folder of class folders.
        left_out: what a folder holds besides videos, told by suffix.
    """

    source: Path
    entries: Sequence[Entry]
    num_classes: int
    class_names: Sequence[str] = ()
    left_out: Sequence[Path] = ()

    @property
    def good(self) -> list[Entry]:
        """The clips to train on."""
        return [entry for entry in self.entries if not entry.problem]

    @property
    def bad(self) -> list[Entry]:
        """The clips with a problem."""
        return [entry for entry in self.entries if entry.problem]

    @property
    def counts(self) -> dict[str, int]:
        """Clips of each problem found, in the order of PROBLEMS."""
        found = collections.Counter(entry.problem for entry in self.bad)
        return {problem: found[problem] for problem in PROBLEMS if found[problem]}

    def __str__(self) -> str:
        lines = [f"{len(self.entries)} clips: {len(self.good)} good, {len(self.bad)} with a problem"]
        for problem, count in self.counts.items():
            lines.append(f"{problem:<12}{count:>7}")
            entries = (entry for entry in self.bad if entry.problem == problem)
            for entry in itertools.islice(entries, _SHOWN):
                lines.append(f"    {_where(entry)}: {entry.reason}")
            if count > _SHOWN:
                lines.append(f"    and {count - _SHOWN} more")
        used = {entry.clip.label for entry in self.good}
        if unused := max(0, self.num_classes - len(used)):
            first = next(label for label in itertools.count() if label not in used)
            lines.append(f"labels without a good clip: {unused} of {self.num_classes}, the first is {first}")
        if self.left_out:
            lines.append(f"left out, not a video by name: {len(self.left_out)}, as {self.left_out[0]}")
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """The report, as JSON can hold it."""
        fields = ("line", "name", "problem", "reason")
        return {
            "source": str(self.source),
            "clips": len(self.entries),
            "good": len(self.good),
            "counts": self.counts,
            "problems": [{field: getattr(entry, field) for field in fields} for entry in self.bad],
        }


def check_list(
    path: Path,
    num_classes: int = 0,
    root: str | Path = "",
    min_frames: int = 3,
    frame_template: str = "img_{:05d}.jpg",
    workers: int = 0,
) -> Report:
    """Checks the clips of a list.

    Args:
        path: of "path label" and "folder frames label" lines, see `manifest.read_list`.
        num_classes: C; 0 takes the largest label found for C - 1.
        root: folder that relative paths start from; the list's own folder when empty.
        min_frames: a clip of fewer is too short.
        frame_template: file name of a JPEG, given its 1-based number.
        workers: threads; 0 for one a core.

    Raises:
        UserError: for a list that is missing, not text or empty, or a template that takes no number.
    """
    try:
        frame_template.format(1)
    except (IndexError, KeyError, ValueError) as error:
        raise UserError(
            f"frame template: expected one as img_{{:05d}}.jpg, found {frame_template}"
        ) from error
    lines = manifest.read_lines(path, "list")
    if not lines:
        raise UserError(f'list {path}: expected "path label" or "folder frames label" lines, found none')
    if not num_classes:
        last = (line.rsplit(maxsplit=1)[-1] for _, line in lines)
        num_classes = 1 + max((int(word) for word in last if word.isdecimal()), default=0)
    root = Path(root) if root else path.parent
    entries = []
    for number, line in lines:
        try:
            clip = manifest.parse("", line, num_classes, root)
            entries.append(Entry(str(clip.path), clip, number))
        except UserError as error:
            entries.append(Entry(line, None, number, "wrong label", str(error).removeprefix(": ")))
    return Report(path, _check_all(entries, min_frames, frame_template, workers), num_classes)


def check_folder(path: Path, num_classes: int = 0, min_frames: int = 3, workers: int = 0) -> Report:
    """Checks the videos in a folder, or in its class folders, whose sorted names are the labels 0..C-1.

    Args:
        path: of a folder of videos, or of class folders that hold videos.
        num_classes: C; 0 for as many as there are class folders.
        min_frames: a clip of fewer is too short.
        workers: threads; 0 for one a core.

    Raises:
        UserError: when it holds no videos, or some beside class folders, or another number of these.
    """
    classes = [p for p in _visible(path) if p.is_dir()]
    files = [(p, 0) for p in _visible(path) if not p.is_dir()]
    files += [(p, label) for label, folder in enumerate(classes) for p in _visible(folder)]
    is_video = [p.suffix.lower() in VIDEO_SUFFIXES and not p.is_dir() for p, _ in files]
    videos = list(itertools.compress(files, is_video))
    labelled = {p.parent != path for p, _ in videos}
    if len(labelled) != 1:
        found = "both" if labelled else "none"
        raise UserError(f"folder {path}: expected videos, or class folders of videos, found {found}")
    if labelled == {False}:
        classes = []
    elif num_classes not in (0, len(classes)):
        raise UserError(f"folder {path}: expected {num_classes} class folders, found {len(classes)}")
    entries = _check_all([Entry(str(p), Clip(p, label)) for p, label in videos], min_frames, "", workers)
    left_out = [p for (p, _), video in zip(files, is_video, strict=True) if not video]
    return Report(path, entries, len(classes), [p.name for p in classes], left_out)


def write(report: Report, out: Path, root: str | Path = "") -> list[Path]:
    """Writes the good clips as a list, and class names, where there are any, beside it.

    Nothing is written when no clip is good, or the clips have no labels.

    Args:
        report: of a check.
        out: the list; the names become NAME.classes.txt for its NAME.txt.
        root: folder that its relative paths start from; its own when empty. Paths outside are absolute.

    Returns:
        What was written.
    """
    if not (report.good and report.num_classes):
        return []
    base = Path(root or out.parent).absolute()
    texts = {out: "".join(_line(entry.clip, base) for entry in report.good)}
    if report.class_names:
        texts[out.with_suffix(".classes.txt")] = "".join(f"{name}\n" for name in report.class_names)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return list(texts)


def _line(clip: Clip, base: Path) -> str:
    path = clip.path.absolute()
    path = path.relative_to(base) if path.is_relative_to(base) else path
    return " ".join(str(field) for field in (path, clip.num_frames, clip.label) if field is not None) + "\n"


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _where(entry: Entry) -> str:
    return f"line {entry.line}, {entry.name}" if entry.line else entry.name


def _check_all(entries: Sequence[Entry], min_frames: int, frame_template: str, workers: int) -> list[Entry]:
    check = functools.partial(_check, min_frames=min_frames, frame_template=frame_template)
    pause = 0.2 if sys.stderr.isatty() else 30  # seconds between lines of progress; a log file needs few
    # Threads suffice: decoding and hashing leave Python's lock.
    with ThreadPool(workers or os.cpu_count()) as pool:
        checked = pool.imap(check, entries)
        entries = list(tqdm.tqdm(checked, "check", len(entries), unit=" clips", mininterval=pause))
    return _mark_duplicates(entries)


def _mark_duplicates(entries: Sequence[Entry]) -> list[Entry]:
    marked, first = [], {}
    for entry in entries:
        if not entry.problem:
            path = os.path.abspath(entry.name)
            known = first.get(path) or first.get(entry.digest)
            if known:
                same = "listed before" if path == os.path.abspath(known.name) else "same bytes"
                reason = f"{same}: {_where(known)}"
                if known.clip.label != entry.clip.label:
                    reason += f", there with label {known.clip.label}, here {entry.clip.label}"
                entry = dataclasses.replace(entry, problem="duplicate", reason=reason)
            else:
                first[path] = first[entry.digest] = entry
        marked.append(entry)
    return marked


def _check(entry: Entry, min_frames: int, frame_template: str) -> Entry:
    """The entry with its digest, or with its problem."""
    if entry.clip is None:
        return entry
    try:
        digest = defects.digest(entry.clip, min_frames, frame_template)
    except defects.Defect as defect:
        return dataclasses.replace(entry, problem=defect.problem, reason=defect.reason)
    return dataclasses.replace(entry, digest=digest)
