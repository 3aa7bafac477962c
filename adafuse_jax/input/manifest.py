"""List files: which clips there are, where they lie and what they show."""

import dataclasses
import re
from pathlib import Path

from adafuse_jax.errors import UserError

_INTEGER = re.compile(r"[+-]?\d+")


@dataclasses.dataclass(frozen=True)
class Clip:
    """One line of a list: a video file, or a folder of JPEG frames when `num_frames` is set."""

    path: Path
    label: int
    num_frames: int | None = None


def read_list(path: str | Path, num_classes: int, root: str | Path = "") -> list[Clip]:
    """Reads a list of "path label" (video file) and "folder frames label" (JPEG folder) lines.

    Fields are separated by whitespace and read from the right, so a path may contain spaces. A line
    that ends in two integers could be either: it is read as a folder when what stands before them is a
    directory, as a video when the path including the first of the two is a file ("take 2 0"), and as a
    folder again when neither exists. Blank lines are skipped.

    Args:
        path: the list.
        num_classes: C; labels are 0..C-1.
        root: folder that relative paths start from; the list's own folder when empty.

    Raises:
        UserError: for a missing, unreadable or empty list, a malformed line, a label out of range, and
            paths that don't exist.
    """
    path = Path(path)
    root = Path(root) if root else path.parent
    clips, missing = [], []
    for number, line in read_lines(path, "list"):
        clip = parse(f"{path}, line {number}", line, num_classes, root)
        clips.append(clip)
        if not clip.path.exists():
            missing.append(clip.path)
    if not clips:
        raise UserError(f'list {path}: expected "path label" or "folder frames label" lines, found none')
    if missing:
        raise UserError(
            f"list {path}: {len(missing)} of {len(clips)} paths don't exist, the first is {missing[0]}"
        )
    return clips


def read_class_names(path: str | Path, num_classes: int) -> list[str]:
    """Names of the classes in label order, one a line; the labels' numbers when `path` is empty.

    Raises:
        UserError: for a missing file, or another number of names than `num_classes`.
    """
    if not path:
        return [str(label) for label in range(num_classes)]
    names = [line for _, line in read_lines(Path(path), "class names")]
    if len(names) != num_classes:
        raise UserError(f"class names {path}: expected {num_classes} lines, found {len(names)}")
    return names


def read_lines(path: Path, kind: str) -> list[tuple[int, str]]:
    """(1-based number, text) of the lines that aren't blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a UTF-8 text file"
        raise UserError(f"{kind} {path}: expected a text file, found: {reason}") from error
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return [(number, line) for number, line in lines if line]


def parse(where: str, line: str, num_classes: int, root: Path) -> Clip:
    """The clip of a line that stands at `where`; UserError for a malformed line or a label out of range."""
    expected = 'expected "path label" or "folder frames label"'
    name, *rest = line.rsplit(maxsplit=1)
    if not rest or not _INTEGER.fullmatch(rest[0]):
        raise UserError(f"{where}: {expected}, found {line!r}")
    label = int(rest[0])
    if not 0 <= label < num_classes:
        raise UserError(f"{where}: expected a label in 0..{num_classes - 1}, found {label}")

    folder, *rest = name.rsplit(maxsplit=1)
    is_folder = rest and _INTEGER.fullmatch(rest[0])
    if is_folder and not (root / folder).is_dir() and (root / name).is_file():
        is_folder = False
    if not is_folder:
        if (root / name).is_dir():
            raise UserError(f'{where}: {name} is a folder, expected "folder frames label", found {line!r}')
        return Clip(root / name, label)
    num_frames = int(rest[0])
    if num_frames < 1:
        raise UserError(f"{where}: expected at least 1 frame, found {num_frames}")
    if (root / folder).is_file():
        raise UserError(f'{where}: {folder} is a file, expected "path label", found {line!r}')
    return Clip(root / folder, label, num_frames)
