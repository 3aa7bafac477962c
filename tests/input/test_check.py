"""`adafuse check-data`: each defect is found under its name, and the cleaned list holds the good clips."""

import json
import shutil
import struct

import av
import cv2
import numpy as np
import pytest
from videos import textures, write_sound, write_video

from adafuse_jax import cli
from adafuse_jax.errors import UserError
from adafuse_jax.input import manifest
from adafuse_jax.input.check import check_folder, check_list, write
from adafuse_jax.input.decode import UnreadableClip, read_frames
from adafuse_jax.input.manifest import Clip

CONTAINERS = {  # codec, pixels, encoder's options, container's options
    "h264.mp4": ("libx264", "yuv420p", {}, {}),
    "faststart.mp4": ("libx264", "yuv420p", {}, {"movflags": "faststart"}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8"}, {}),
    "h264.mkv": ("libx264", "yuv420p", {}, {}),
    "mjpeg.avi": ("mjpeg", "yuvj420p", {}, {}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {}, {}),
    "h264.flv": ("libx264", "yuv420p", {}, {}),
}


def video(path, seed=0, count=40):
    write_video(path, textures(count, seed), "mpeg4", "yuv420p")
    return path


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def listed(folder, *lines):
    path = folder / "list.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def problems(report):
    return [entry.problem for entry in report.entries]


def problem_of(path):
    """What the check says of one video."""
    (entry,) = check_list(listed(path.parent, f"{path.name} 0")).entries
    assert bool(entry.reason) == bool(entry.problem)
    return entry.problem


def is_readable(path):
    try:
        read_frames(Clip(path, 0), lambda n: range(n))
    except UnreadableClip:
        return False
    return True


@pytest.mark.parametrize("name", CONTAINERS)
def test_truncated(tmp_path, name):
    path = tmp_path / name
    codec, pixels, options, muxer = CONTAINERS[name]
    write_video(path, textures(40), codec, pixels, options, muxer)
    assert problem_of(path) == ""
    assert is_readable(path)
    whole = path.read_bytes()
    for share in (0.85, 0.5):
        path.write_bytes(whole[: int(share * len(whole))])
        assert problem_of(path) == "truncated"


def test_a_truncated_clip_that_decodes_gives_what_is_there(tmp_path):
    path = tmp_path / "cut.webm"
    write_video(path, textures(40), *CONTAINERS["vp9.webm"][:3])
    whole = read_frames(Clip(path, 0), range)
    cut(path, 0.5)
    left = read_frames(Clip(path, 0), range)
    assert 5 < len(left) < 35
    np.testing.assert_array_equal(left, whole[: len(left)])
    (entry,) = check_list(listed(tmp_path, "cut.webm 0")).entries
    assert entry.reason == f"ends at {len(left) / 10:.2f} s of 4.00 s"


def test_a_header_without_duration_promises_nothing(tmp_path):
    path = tmp_path / "live.webm"
    write_video(path, textures(40), *CONTAINERS["vp9.webm"][:3], {"live": "1"})
    cut(path, 0.5)
    assert problem_of(path) == ""


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_sound_that_outlasts_the_pictures_is_no_truncation(tmp_path, suffix):
    path = tmp_path / f"sound.{suffix}"
    write_video(path, textures(20), seconds_of_sound=6)
    with av.open(str(path)) as container:
        assert container.duration / av.time_base > 5
    assert problem_of(path) == ""


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_late_first_frame_is_no_truncation(tmp_path, suffix):
    path = tmp_path / f"late.{suffix}"
    write_video(path, textures(30), times=[2000 + 100 * i for i in range(30)])
    assert problem_of(path) == ""


def text(path):
    path.write_text("not a video\n" * 100)


def two_sizes(path):
    data = b""
    for height in (64, 96):
        write_video(path, textures(10, height=height))
        data += path.read_bytes()
    path.write_bytes(data)


def damage(path):
    """Zeros the end of a packet amid the others."""
    write_video(path, textures(40), options={"g": "10"})
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][20]
    with path.open("r+b") as file:
        file.seek(packet.pos + packet.size // 2)
        file.write(bytes(packet.size - packet.size // 2))


@pytest.mark.parametrize(
    "name, make, problem, readable",
    [
        ("absent.mp4", lambda path: None, "missing", False),
        ("empty.mp4", lambda path: path.touch(), "empty", False),
        ("text.mp4", text, "unreadable", False),
        ("sound.mp4", write_sound, "no video", False),
        ("one.mp4", lambda path: video(path, count=1), "too short", True),
        ("two.webm", lambda path: write_video(path, textures(2), "libvpx"), "too short", True),
        ("three.mp4", lambda path: video(path, count=3), "", True),
        ("sizes.h264", two_sizes, "unreadable", False),
        ("damaged.mp4", damage, "damaged", True),
    ],
)
def test_defects_of_a_video(tmp_path, name, make, problem, readable):
    make(tmp_path / name)
    assert problem_of(tmp_path / name) == problem
    assert is_readable(tmp_path / name) == readable


def test_fewest_frames_are_the_users_choice(tmp_path):
    video(tmp_path / "five.mp4", count=5)
    path = listed(tmp_path, "five.mp4 0")
    assert problems(check_list(path, min_frames=5)) == [""]
    assert problems(check_list(path, min_frames=6)) == ["too short"]


@pytest.fixture
def frames(tmp_path):
    """A function that makes a folder of 6 JPEGs."""

    def frames(name, seed=0):
        folder = tmp_path / name
        folder.mkdir()
        for i, image in enumerate(textures(6, seed), 1):
            cv2.imwrite(str(folder / f"img_{i:05d}.jpg"), image)
        return folder

    return frames


def drop(folder):
    (folder / "img_00004.jpg").unlink()


def resize(folder):
    cv2.imwrite(str(folder / "img_00004.jpg"), np.zeros((64, 64, 3), np.uint8))


def clear(folder):
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    "spoil, count, problem, reason",
    [
        (lambda folder: None, 6, "", ""),
        (lambda folder: None, 5, "", ""),  # frames beyond the list's are never read
        (lambda folder: None, 8, "missing", "2 of 8 frames, the first is img_00007.jpg"),
        (lambda folder: None, 2, "too short", "expected at least 3 frames, found 2"),
        (drop, 6, "missing", "1 of 6 frames, the first is img_00004.jpg"),
        (resize, 6, "unreadable", "expected frames of one size, found 64x64 and 96x64"),
        (lambda folder: cut(folder / "img_00006.jpg", 0.6), 6, "unreadable", "img_00006.jpg: a broken image"),
        (lambda folder: cut(folder / "img_00001.jpg", 0), 6, "unreadable", "img_00001.jpg: "),
        (clear, 6, "empty", "a folder without files"),
        (shutil.rmtree, 6, "missing", "no such file or folder"),
    ],
)
def test_defects_of_a_jpeg_folder(tmp_path, frames, spoil, count, problem, reason):
    spoil(frames("clip"))
    (entry,) = check_list(listed(tmp_path, f"clip {count} 0")).entries
    assert (entry.problem, entry.reason[: len(reason)]) == (problem, reason)
    assert bool(entry.reason) == bool(problem)


def test_names_of_frames_follow_the_template(tmp_path, frames):
    for path in frames("clip").iterdir():
        path.rename(path.with_name(f"{int(path.stem[4:])}.jpg"))
    path = listed(tmp_path, "clip 6 0")
    assert problems(check_list(path, frame_template="{}.jpg")) == [""]
    assert problems(check_list(path)) == ["missing"]
    with pytest.raises(UserError, match=r"frame template: expected .*, found {b}\.jpg"):
        check_list(path, frame_template="{b}.jpg")


def test_wrong_labels(tmp_path):
    for i in range(5):
        video(tmp_path / f"{i}.mp4", seed=i, count=4)
    path = listed(tmp_path, "0.mp4 0", "1.mp4 3", "2.mp4 -1", "3.mp4", "", "4.mp4 2", ". 1")
    report = check_list(path, num_classes=3)
    assert problems(report) == ["", *["wrong label"] * 3, "", "wrong label"]
    assert [entry.line for entry in report.entries] == [1, 2, 3, 4, 6, 7]
    assert report.entries[1].reason == "expected a label in 0..2, found 3"
    assert report.num_classes == 3
    assert "labels without a good clip: 1 of 3, the first is 1" in str(report)
    report = check_list(path)  # as many classes as the largest label asks for
    assert report.num_classes == 4
    assert problems(report) == ["", "", *["wrong label"] * 2, "", "wrong label"]


def test_duplicates(tmp_path, frames):
    video(tmp_path / "a.mp4", seed=1)
    video(tmp_path / "b.mp4", seed=2)
    shutil.copy(tmp_path / "a.mp4", tmp_path / "copy.mp4")
    frames("clip", seed=3)
    frames("other", seed=4)
    shutil.copytree(tmp_path / "clip", tmp_path / "clip_copy")
    (tmp_path / "empty1.mp4").touch()
    (tmp_path / "empty2.mp4").touch()
    lines = {
        "a.mp4 0": "",
        "b.mp4 0": "",
        "copy.mp4 0": f"same bytes: line 1, {tmp_path}/a.mp4",
        f"../{tmp_path.name}/b.mp4 1": f"listed before: line 2, {tmp_path}/b.mp4, there with label 0, here 1",
        "clip 6 1": "",
        "other 6 1": "",
        "clip_copy 6 1": f"same bytes: line 5, {tmp_path}/clip",
        "clip 5 1": f"listed before: line 5, {tmp_path}/clip",
        "empty1.mp4 0": "0 bytes",  # a clip with another problem is no duplicate
        "empty2.mp4 0": "0 bytes",
    }
    report = check_list(listed(tmp_path, *lines))
    assert [entry.reason for entry in report.entries] == list(lines.values())
    assert report.counts == {"empty": 2, "duplicate": 4}


@pytest.fixture
def mixed(tmp_path, frames):
    """A list of good and bad clips."""
    (tmp_path / "sub").mkdir()
    take = video(tmp_path / "sub" / "take.mp4", seed=1)
    take.rename(take.with_name("take 2"))  # could be read as a folder and its count
    video(tmp_path / "b.mp4", seed=2)
    cut(video(tmp_path / "c.avi", seed=3), 0.7)
    frames("clip")
    return listed(tmp_path, "sub/take 2 0", "gone.mp4 1", f"{tmp_path}/b.mp4 1", "c.avi 0", "clip 6 2", "x y")


@pytest.mark.parametrize("place", ["", "sub", "elsewhere"])
def test_the_cleaned_list_holds_the_good_clips(tmp_path, mixed, place):
    (tmp_path / "elsewhere").mkdir()
    out = tmp_path / place / "clean.txt"
    report = check_list(mixed, num_classes=3)
    assert problems(report) == ["", "missing", "", "truncated", "", "wrong label"]
    assert write(report, out) == [out]
    found = manifest.read_list(out, 3)
    expected = [Clip(tmp_path / "sub/take 2", 0), Clip(tmp_path / "b.mp4", 1), Clip(tmp_path / "clip", 2, 6)]
    assert [(clip.path.resolve(), clip.label, clip.num_frames) for clip in found] == [
        (clip.path, clip.label, clip.num_frames) for clip in expected
    ]
    assert set(problems(check_list(out))) == {""}


def test_the_cleaned_list_keeps_the_root(tmp_path, mixed):
    (tmp_path / "lists").mkdir()
    path = shutil.move(mixed, tmp_path / "lists" / "list.txt")
    report = check_list(path, root=tmp_path)
    out = tmp_path / "lists" / "clean.txt"
    write(report, out, tmp_path)
    assert out.read_text().splitlines() == ["sub/take 2 0", "b.mp4 1", "clip 6 2"]


def test_number_of_threads_does_not_matter(mixed):
    assert check_list(mixed, workers=1) == check_list(mixed, workers=5)


@pytest.fixture
def class_folders(tmp_path):
    for i, name in enumerate(["b/1.mp4", "b/2.MP4", "a/1.mp4", "c/.hidden.mp4", "c/notes.txt"]):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        video(path.with_suffix(".mp4"), seed=i, count=4).rename(path)
    return tmp_path / "data"


def test_class_folders(tmp_path, class_folders):
    report = check_folder(class_folders)
    assert report.class_names == ["a", "b", "c"]
    assert [(entry.clip.path.name, entry.clip.label) for entry in report.entries] == [
        ("1.mp4", 0),
        ("1.mp4", 1),
        ("2.MP4", 1),
    ]
    assert report.left_out == [class_folders / "c" / "notes.txt"]
    assert "labels without a good clip: 1 of 3, the first is 2" in str(report)
    assert write(report, tmp_path / "out.txt") == [tmp_path / "out.txt", tmp_path / "out.classes.txt"]
    assert manifest.read_class_names(tmp_path / "out.classes.txt", 3) == ["a", "b", "c"]
    assert (tmp_path / "out.txt").read_text() == "data/a/1.mp4 0\ndata/b/1.mp4 1\ndata/b/2.MP4 1\n"


def test_the_command_on_class_folders(tmp_path, class_folders, monkeypatch, capsys):
    monkeypatch.chdir(class_folders)
    assert cli.main(["check-data", "."]) == 0
    assert "3 clips: 3 good" in capsys.readouterr().out
    found = manifest.read_list(tmp_path / "data.clean.txt", 3)
    assert [clip.label for clip in found] == [0, 1, 1]
    assert manifest.read_class_names(tmp_path / "data.clean.classes.txt", 3) == ["a", "b", "c"]


def test_a_folder_of_videos_has_no_labels(tmp_path, class_folders):
    report = check_folder(class_folders / "b")
    assert problems(report) == ["", ""]
    assert write(report, tmp_path / "out.txt") == []
    assert not (tmp_path / "out.txt").exists()


def test_folders_of_neither_form(class_folders):
    with pytest.raises(UserError, match="expected 4 class folders, found 3"):
        check_folder(class_folders, num_classes=4)
    shutil.copy(class_folders / "a" / "1.mp4", class_folders)
    with pytest.raises(UserError, match="expected videos, or class folders of videos, found both"):
        check_folder(class_folders)
    with pytest.raises(UserError, match="expected videos, or class folders of videos, found none"):
        check_folder(class_folders / "c")


def test_the_command(tmp_path, mixed, capsys):
    before = mixed.read_bytes()
    assert cli.main(["check-data", str(mixed), "--json", str(tmp_path / "report.json")]) == 1
    shown = capsys.readouterr().out
    assert "6 clips: 3 good, 3 with a problem" in shown
    assert f"line 2, {tmp_path}/gone.mp4: no such file or folder" in shown
    assert f"written  {tmp_path}/list.clean.txt" in shown
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["counts"] == {"missing": 1, "truncated": 1, "wrong label": 1}
    assert report["problems"][0] == {
        "line": 2,
        "name": f"{tmp_path}/gone.mp4",
        "problem": "missing",
        "reason": "no such file or folder",
    }
    assert cli.main(["check-data", str(tmp_path / "list.clean.txt")]) == 0
    assert mixed.read_bytes() == before


def test_only_the_first_of_many_are_shown(tmp_path):
    report = check_list(listed(tmp_path, *[f"gone{i}.mp4 0" for i in range(10)]))
    assert "missing          10\n" in str(report)
    assert str(report).count("gone") == 3
    assert "and 7 more" in str(report)
    assert write(report, tmp_path / "out.txt") == []


@pytest.mark.parametrize(
    "arguments, found",
    [
        (["absent.txt"], "No such file"),
        (["blank.txt"], "found none"),
        (["list.txt", "--out", "list.txt"], "never overwritten"),
        (["list.txt", "--json", "x/../list.txt"], "never overwritten"),
        (["list.txt", "--out", "absent/clean.txt"], "a folder that can be written to"),
    ],
)
def test_wrong_usage(tmp_path, monkeypatch, capsys, arguments, found):
    monkeypatch.chdir(tmp_path)
    listed(tmp_path, "a.mp4 0")
    (tmp_path / "blank.txt").write_text("\n\n")
    assert cli.main(["check-data", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert found in error
    assert error.count("\n") == 1
    assert (tmp_path / "list.txt").read_text() == "a.mp4 0\n"
    for flag in ("--min_frames", "--num_classes", "--workers"):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["check-data", "list.txt", flag, "0"])


def test_an_mp4_with_64_bit_boxes(tmp_path):
    """A box beyond 4 GB has its length after its name."""
    path = video(tmp_path / "long.mp4")
    data = path.read_bytes()
    start = data.index(b"mdat") - 4
    length = struct.unpack(">I", data[start : start + 4])[0]
    box = struct.pack(">I4sQ", 1, b"mdat", length + 8) + data[start + 8 : start + length]
    for share in (0.5, 0.9):
        path.write_bytes(data[:start] + box[: int(share * len(box))])
        assert problem_of(path) == "truncated"
    path.write_bytes(data[:start] + box)  # whole, but never had an index
    assert problem_of(path) == "unreadable"
