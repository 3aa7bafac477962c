"""Lists of clips: how a line is read, and what a user is told about a wrong one."""

import pytest

from adafuse_jax.errors import UserError
from adafuse_jax.input.manifest import Clip, read_class_names, read_list


@pytest.fixture
def folder(tmp_path):
    """Videos and frame folders, by names that invite misreading."""
    for name in ("a.mp4", "my clip.mp4", "take 2"):
        (tmp_path / name).touch()
    for name in ("jumps", "two words", "shot 7", "nested/deep"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def write(folder):
    def write(text, encoding="utf-8"):
        path = folder / "list.txt"
        path.write_bytes(text.encode(encoding))
        return path

    return write


@pytest.mark.parametrize(
    "line, name, label, frames",
    [
        ("a.mp4 3", "a.mp4", 3, None),
        ("  a.mp4\t 3 \r", "a.mp4", 3, None),
        ("my clip.mp4 0", "my clip.mp4", 0, None),
        ("take 2 5", "take 2", 5, None),  # a file whose name ends in a number
        ("jumps 28 1", "jumps", 1, 28),
        ("two words 28 1", "two words", 1, 28),
        ("shot 7 28 1", "shot 7", 1, 28),  # a folder whose name ends in a number
        ("nested/deep 9 5", "nested/deep", 5, 9),
    ],
)
def test_lines(folder, write, line, name, label, frames):
    assert read_list(write(f"{line}\n"), 6) == [Clip(folder / name, label, frames)]


def test_order_blank_lines_mixed_kinds_and_byte_order_mark(folder, write):
    clips = read_list(write("jumps 28 1\n\na.mp4 0\n  \njumps 28 2", "utf-8-sig"), 6)
    assert [(clip.path.name, clip.label) for clip in clips] == [("jumps", 1), ("a.mp4", 0), ("jumps", 2)]


def test_root_and_absolute_paths(folder, write, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("lists") / "list.txt"
    other.write_text("a.mp4 0\n")
    assert read_list(other, 6, root=folder)[0].path == folder / "a.mp4"
    monkeypatch.chdir(folder)
    assert read_list(other, 6, root=".")[0].path.resolve() == folder / "a.mp4"
    other.write_text(f"{folder}/a.mp4 0\n")
    assert read_list(other, 6)[0].path == folder / "a.mp4"


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "expected .* lines, found none"),
        ("\n  \n", "expected .* lines, found none"),
        ("a.mp4 0\na.mp4\n", "line 2: expected .* found 'a.mp4'"),
        ("a.mp4 jump\n", "line 1: expected .* found 'a.mp4 jump'"),
        ("a.mp4 1.0\n", "line 1: expected .* found 'a.mp4 1.0'"),
        ("a.mp4 0\n\na.mp4 6\n", r"line 3: expected a label in 0\.\.5, found 6"),
        ("a.mp4 -1\n", r"line 1: expected a label in 0\.\.5, found -1"),
        ("jumps 28 6\n", r"line 1: expected a label in 0\.\.5, found 6"),
        ("jumps 0 1\n", "line 1: expected at least 1 frame, found 0"),
        ("jumps 1\n", "line 1: jumps is a folder"),
        ("a.mp4 28 1\n", "line 1: a.mp4 is a file"),
        ("a.mp4 0\nb.mp4 0\nc 3 0\n", "2 of 3 paths don't exist, the first is .*b.mp4"),
        ("c 3 0\n", "1 of 1 paths don't exist, the first is .*c$"),
    ],
)
def test_wrong_lists(write, text, message):
    path = write(text)
    with pytest.raises(UserError, match=message) as caught:
        read_list(path, 6)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_lists(folder, write):
    with pytest.raises(UserError, match=r"absent\.txt: expected a text file, found: No such file"):
        read_list(folder / "absent.txt", 6)
    with pytest.raises(UserError, match="found: Is a directory"):
        read_list(folder / "jumps", 6)
    with pytest.raises(UserError, match="not a UTF-8 text file"):
        read_list(write("é.mp4 0", "latin-1"), 6)


def test_class_names(write):
    assert read_class_names(write("Jump\nRun away\n\n"), 2) == ["Jump", "Run away"]
    assert read_class_names("", 3) == ["0", "1", "2"]
    with pytest.raises(UserError, match="expected 3 lines, found 2"):
        read_class_names(write("Jump\nRun\n"), 3)


def test_real_lists(clips):
    for name, count in (("train", 150), ("val", 96)):
        videos, frames = (read_list(clips / f"{name}_{kind}.txt", 6) for kind in ("clips", "frames"))
        assert len(videos) == len(frames) == count
        assert [clip.label for clip in videos] == [clip.label for clip in frames]
        assert all(clip.num_frames is None for clip in videos)
        for clip in frames:
            assert len(list(clip.path.iterdir())) == clip.num_frames
