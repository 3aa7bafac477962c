"""Preparation: what is stored is what was there, whatever happens on the way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import owner_files
import pytest
import tensorflow_datasets as tfds

from adafuse_jax.input import moving_shapes
from adafuse_jax.input.prepared import PreparedClips, stored_indices
from data import prepare

GREY = np.array([0.299, 0.587, 0.114])
ROOT = Path(__file__).resolve().parents[2]


def run(name, out, *options, manual_dir=None):
    """The exit status of the command, in this process."""
    manual = ["--manual_dir", str(manual_dir)] if manual_dir else []
    return prepare.main([name, "--data_dir", str(out), "--workers", "1", *manual, *map(str, options)])


def prepared(name, out, *options, manual_dir=None, folder=None):
    assert run(name, out, *options, manual_dir=manual_dir) == 0
    return out / (folder or name) / "1.0.0"


def shards(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.array_record-*"))}


def frames(directory, split):
    """{name: (label, original indices, number each stored frame tells)}."""
    clips = PreparedClips(directory, split)
    found = {}
    for clip in (clips[i] for i in range(len(clips))):
        stored = clip.frame_indices.tolist()
        found[clip.name] = (
            clip.label,
            stored,
            owner_files.numbers(clip.read_frames(lambda n, stored=stored: stored)),
        )
    return found


@pytest.mark.parametrize("name", sorted(set(prepare.BUILDERS) - {"moving_shapes"}))
def test_every_layout(tmp_path, name):
    """Each frame is where it belongs, under TFDS's own reading and ours; labels and metadata are right."""
    manual_dir = getattr(owner_files, name)(tmp_path / "owner")
    listing = prepare.BUILDERS[name](data_dir=tmp_path / "unused").listing(manual_dir)
    splits = list(listing.splits)
    directory = prepared(name, tmp_path, "--splits", ",".join(splits), manual_dir=manual_dir)

    builder = tfds.builder_from_directory(directory)
    assert builder.name == name
    assert builder.info.features["label"].names == list(listing.class_names)
    assert prepare.BUILDERS[name].HOMEPAGE in builder.info.homepage
    assert builder.info.citation == prepare.BUILDERS[name].CITATION.strip()
    for split in splits:
        found = frames(directory, split)
        assert {n: label for n, (label, _, _) in found.items()} == {
            item.name: item.label for item in listing.splits[split]
        }
        assert list(found) == [item.name for item in listing.splits[split]]
        for _, stored, told in found.values():
            assert stored == told
        for record, item in zip(builder.as_data_source(split), listing.splits[split], strict=True):
            assert record["name"].decode() == item.name
            assert owner_files.numbers(record["frames"]) == found[item.name][1]


def test_at_most_so_many_frames_are_stored(tmp_path):
    owner_files.video_list(tmp_path, train=3, frames=40)
    stored = stored_indices(40, 32).tolist()
    assert frames(prepared("video_list", tmp_path / "a", manual_dir=tmp_path), "train")[
        "clips/train 0.mp4"
    ] == ((0, stored, stored))
    whole = prepared("video_list", tmp_path / "b", "--max_frames", 0, manual_dir=tmp_path)
    assert frames(whole, "train")["clips/train 0.mp4"][1] == list(range(40))
    clip = PreparedClips(whole, "train")[0]
    assert (clip.num_frames, len(clip.frames)) == (40, 40)
    assert PreparedClips(tmp_path / "a" / "video_list" / "1.0.0", "train")[0].num_frames == 40


def test_small_jpegs_stay_as_they_are_and_large_frames_shrink(tmp_path):
    owner_files.jester(tmp_path)
    jpeg = PreparedClips(prepared("jester", tmp_path / "a", manual_dir=tmp_path), "train")[0].frames[3]
    assert jpeg == (tmp_path / "20bn-jester-v1" / "1" / "00004.jpg").read_bytes()
    smaller = prepared("jester", tmp_path / "b", "--short_side", 18, manual_dir=tmp_path)
    for clip in (PreparedClips(smaller, "train")[0],):
        assert {image.shape for image in clip.read_frames(range)} == {(18, 24, 3)}
        assert owner_files.numbers(clip.read_frames(range)) == list(range(12))
    owner_files.video_list(tmp_path / "tall", train=2, height=40, width=24)
    tall = prepared("video_list", tmp_path / "c", "--short_side", 16, manual_dir=tmp_path / "tall")
    assert PreparedClips(tall, "train")[0].read_frames(lambda n: [0])[0].shape == (26, 16, 3)


def test_moving_shapes_are_those_drawn(tmp_path):
    options = (
        "--train_clips",
        5,
        "--val_clips",
        3,
        "--config",
        "medium",
        "--quality",
        100,
        "--image_size",
        64,
    )
    directory = prepared("moving_shapes", tmp_path, *options, folder="moving_shapes/medium")
    for split, name, length in (("train", "train", 5), ("validation", "val", 3)):
        clips = PreparedClips(directory, split)
        drawn = moving_shapes.MovingShapes(name, 8, "medium", length, image_size=64)
        assert len(clips) == length
        for i in range(length):
            assert clips[i].label == drawn[i]["label"]
            stored = np.array(clips[i].read_frames(range), np.float32)
            # Brightness: the colour of the noise, JPEGs store at half the size.
            np.testing.assert_allclose(stored @ GREY, drawn[i]["clip"] @ GREY, atol=8)
    assert clips.class_names == list(moving_shapes.CLASSES)


def test_tfds_itself_prepares_the_same(tmp_path):
    owner_files.jester(tmp_path)
    ours = prepared("jester", tmp_path / "ours", "--splits", "train,validation,test", manual_dir=tmp_path)
    builder = prepare.BUILDERS["jester"](data_dir=tmp_path / "tfds")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path))
    for split in ("train", "validation", "test"):
        assert frames(Path(builder.data_dir), split) == frames(ours, split)
    assert PreparedClips(builder.data_dir, "train").class_names == PreparedClips(ours, "train").class_names


def test_jpegs_lie_in_the_shard_as_they_are(tmp_path):
    """Compressing them again, as TFDS itself does, would only cost time; both read alike (above)."""
    owner_files.jester(tmp_path)
    directory = prepared("jester", tmp_path / "out", manual_dir=tmp_path)
    (shard,) = directory.glob("*train.array_record*")
    content, clip = shard.read_bytes(), PreparedClips(directory, "train")[0]
    assert all(frame in content for frame in clip.frames)


def test_a_clip_that_cannot_be_read_is_listed_and_left_out(tmp_path, capsys):
    owner_files.something_something_v1(tmp_path)
    folder = tmp_path / "20bn-something-something-v1"
    (folder / "7" / "00004.jpg").write_bytes(b"no JPEG")
    (folder / "31" / "00002.jpg").unlink()
    (folder / "9" / "00001.jpg").write_bytes(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    options = ("--shard_clips", 2)
    assert run("something_something_v1", tmp_path / "few", *options, manual_dir=tmp_path) == 2
    error = capsys.readouterr().err
    assert "of 6 clips can't be read, more than the share --max_rejected 0.01" in error

    options = (*options, "--max_rejected", 0.7)
    directory = prepared("something_something_v1", tmp_path / "out", *options, manual_dir=tmp_path)
    lines = [line.split("\t") for line in (directory / prepare.REJECTED).read_text().splitlines()]
    assert [(split, name) for split, name, _ in lines] == [
        ("train", "31"),
        ("train", "7"),
        ("validation", "9"),
    ]
    found = "expected 00002.jpg among", "broken image", "frames of one size"
    assert all(text in reason for text, (_, _, reason) in zip(found, lines, strict=True))
    assert list(frames(directory, "train")) == ["100218", "32"]
    assert list(frames(directory, "validation")) == ["48032"]
    text = capsys.readouterr().out
    assert "2 shards  2 rejected" in text and "1 shards  1 rejected" in text

    (folder / "48032").rename(folder / "48033")
    options = (*options, "--max_rejected", 0.9)
    assert run("something_something_v1", tmp_path / "none", *options, manual_dir=tmp_path) == 2
    assert "split validation: expected clips, found none that can be read" in capsys.readouterr().err


def test_an_empty_shard_between_others(tmp_path):
    owner_files.video_list(tmp_path, train=6)
    for i in (2, 3):
        (tmp_path / "clips" / f"train {i}.mp4").write_bytes(b"")
    options = ("--shard_clips", 2, "--max_rejected", 0.5)
    directory = prepared("video_list", tmp_path / "out", *options, manual_dir=tmp_path)
    assert [label for label, _, _ in frames(directory, "train").values()] == [0, 1, 1, 2]


def command(manual_dir, out, workers):
    arguments = ["video_list", "--manual_dir", manual_dir, "--data_dir", out, "--workers", workers]
    return [sys.executable, "-m", "data.prepare", *map(str, arguments), "--shard_clips", "2"]


def test_killed_and_gone_on_with(tmp_path):
    """Shards reported before the kill aren't written again; in the end all are as without it."""
    owner_files.video_list(tmp_path, train=24)
    whole = prepared("video_list", tmp_path / "whole", "--shard_clips", 2, manual_dir=tmp_path)
    directory = tmp_path / "killed" / "video_list" / "1.0.0"
    # Slow down the second half so that the kill comes in between, on any machine: a named pipe blocks.
    last = tmp_path / "clips" / "train 20.mp4"
    content = last.read_bytes()
    last.unlink()
    os.mkfifo(last)
    deadline = time.monotonic() + 60
    with subprocess.Popen(command(tmp_path, tmp_path / "killed", 2), cwd=ROOT) as process:
        try:
            while len(list((directory / "progress").glob("*"))) < 10:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        finally:
            process.send_signal(signal.SIGKILL)
    last.unlink()
    last.write_bytes(content)
    while any(map(alive, children)):  # workers don't outlive their parent
        assert time.monotonic() < deadline
        time.sleep(0.05)

    assert not (directory / "dataset_info.json").exists()
    # The kill may come between a shard and its report: such a shard is written again.
    reported = [directory / report.stem for report in (directory / "progress").glob("video_list-*")]
    kept = {path: path.stat().st_mtime_ns for path in reported}
    assert 10 <= len(kept) < len(shards(whole))
    assert prepared("video_list", tmp_path / "killed", "--shard_clips", 2, manual_dir=tmp_path) == directory
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert shards(directory) == shards(whole)
    assert not list(directory.glob(".*"))
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    assert run("video_list", tmp_path / "killed", "--shard_clips", 2, manual_dir=tmp_path) == 0
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before


def alive(pid):
    try:
        return Path("/proc", pid, "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_number_of_workers_changes_no_byte(tmp_path):
    owner_files.video_list(tmp_path, train=7)
    one = prepared("video_list", tmp_path / "one", "--shard_clips", 2, manual_dir=tmp_path)
    done = subprocess.run(command(tmp_path, tmp_path / "two", 2), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    two = tmp_path / "two" / "video_list" / "1.0.0"
    assert len(shards(one)) == 6
    assert shards(two) == shards(one)
    assert "train             7 clips" in done.stdout
    assert f"--config.data.prepared_dir={two} --config.data.num_classes=3" in done.stdout


def test_other_settings_need_another_folder(tmp_path, capsys):
    owner_files.jester(tmp_path)
    prepared("jester", tmp_path, manual_dir=tmp_path)
    assert f"note: jester has 27 classes as published, found 3 in {tmp_path}\n" in capsys.readouterr().err
    for options, message in (
        (("--quality", 80), "quality=90, expected 80"),
        (("--splits", "train"), "splits=['train', 'validation'], expected ['train']"),
    ):
        assert run("jester", tmp_path, *options, manual_dir=tmp_path) == 2
        assert message in capsys.readouterr().err
    with open(tmp_path / "labels" / "train.csv", "a") as file:
        file.write("9;Swiping Left\n")
    assert run("jester", tmp_path, manual_dir=tmp_path) == 2
    assert "clips and labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--quality", 0), "--quality: expected 1..100, found 0"),
        (("--max_rejected", 1.5), "--max_rejected: expected 0..1, found 1.5"),
        (("--workers", 0), "--workers: expected at least 1, found 0"),
        (("--splits", "train,valid"), "--splits: expected some of train, validation, test, found 'valid'"),
        (("--manual_dir", "/nowhere"), "--manual_dir: expected a folder, found none at /nowhere"),
    ],
)
def test_flags_out_of_range(tmp_path, capsys, options, message):
    owner_files.jester(tmp_path)
    assert run("jester", tmp_path, "--manual_dir", tmp_path, *options) == 2
    assert capsys.readouterr().err.endswith(f"error: {message}\n")


def test_tensorflow_is_never_imported(tmp_path):
    """Not even tried."""
    owner_files.jester(tmp_path)
    arguments = ["jester", "--manual_dir", str(tmp_path), "--data_dir", str(tmp_path), "--workers", "1"]
    program = f"""
import sys
tried = []
sys.addaudithook(lambda event, args: event == "import" and tried.append(args[0].split(".")[0]))
from data import prepare
assert prepare.main({arguments}) == 0
from adafuse_jax.input.prepared import PreparedClips
assert len(PreparedClips({str(tmp_path / "jester" / "1.0.0")!r}, "train")[0].read_frames(range)) == 12
assert "tensorflow_datasets" in tried and "tensorflow" not in tried, tried
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
