"""Training on lists of clips: what can't be read is reported, counted and never replaced."""

import dataclasses
import logging
import runpy
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from runs import PLAIN, VIDEOS, at, config, logged

from adafuse_jax.config import Config
from adafuse_jax.errors import UserError
from adafuse_jax.train import loop
from adafuse_jax.train.checkpoint import read_meta

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture
def folders(tmp_path):
    """A list of 24 JPEG folders; gives a function that spoils one and a config for the list."""
    rng = np.random.default_rng(0)
    (tmp_path / "clips").mkdir()
    lines = []
    for clip in range(24):
        folder = tmp_path / "clips" / f"clip{clip}"
        folder.mkdir()
        for frame in range(1, 4):
            cv2.imwrite(str(folder / f"img_{frame:05d}.jpg"), rng.integers(0, 256, (20, 24, 3), np.uint8))
        lines.append(f"clip{clip} 3 {clip % 12}\n")
    path = tmp_path / "clips" / "list.txt"
    path.write_text("".join(lines))

    def listed(**data):
        return config(PLAIN, {**VIDEOS, "train_list": str(path), "val_list": str(path), **data}, epochs=1.0)

    return path, listed


def test_unreadable_clips_are_reported_and_counted(folders, tmp_path, caplog):
    path, listed = folders
    (path.parent / "clip5" / "img_00001.jpg").write_bytes(b"no JPEG")
    (path.parent / "clip5.mp4").write_bytes(b"no video")
    # The frames are sampled: of three, any may be drawn, so all are spoilt.
    for frame in (2, 3):
        shutil.copy(path.parent / "clip5" / "img_00001.jpg", path.parent / "clip5" / f"img_{frame:05d}.jpg")
    path.write_text(path.read_text().replace("clip7 3 7", "clip5.mp4 7"))
    with caplog.at_level(logging.WARNING, logger="adafuse_jax"):
        result = loop.train(listed(max_bad_share=0.1), tmp_path / "run")
    assert result["unreadable"] == result["unreadable_train"] == 2
    assert result["clips"] == 22
    # An epoch of three steps holds each clip once.
    assert sum(line["clips"] for line in logged(tmp_path / "run") if line["split"] == "train") == 22
    for name in ("clip5/img_0000", "clip5.mp4"):
        reports = [r.getMessage() for r in caplog.records if f"{path.parent}/{name}" in r.getMessage()]
        assert len(reports) == 2  # once in training, once in evaluation


def test_too_many_unreadable_clips_stop_the_run(folders, tmp_path):
    path, listed = folders
    for frame in (1, 2, 3):
        (path.parent / "clip5" / f"img_{frame:05d}.jpg").write_bytes(b"no JPEG")
    with pytest.raises(UserError, match=r"1 of 24 clips can't be read, .*max_bad_share 0.01; .*clip5/img_0"):
        loop.train(listed(), tmp_path / "run")


def test_clips_that_vanish_stop_the_run(folders, tmp_path, monkeypatch, idle_step):
    path, listed = folders
    values = listed(threads=1)
    values = dataclasses.replace(values, train=dataclasses.replace(values.train, epochs=20.0))
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setattr(loop, "Evaluator", lambda *_: lambda *_: {"loss": 1.0, "top1": 0.0})
    with pytest.MonkeyPatch.context() as patch:
        # After the evaluation at 3; two batches are read ahead, so that one before that at 6 can't be read.
        at(patch, 3, lambda: path.parent.rename(elsewhere))
        with pytest.raises(UserError, match=r"1 of 24 clips can't be read, .* the last is .*clip\d+") as info:
            loop.train(values, tmp_path / "run")
    assert "\n" not in str(info.value)
    assert read_meta(tmp_path / "run", "latest")["metrics"]["step"] == 3
    elsewhere.rename(path.parent)
    loop.train(values, tmp_path / "run")
    assert [line["step"] for line in logged(tmp_path / "run") if line["split"] == "val"] == [*range(3, 61, 3)]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_list_is_checked_before_anything_else(folders, tmp_path, monkeypatch, split):
    monkeypatch.setattr(loop, "build", lambda *_: pytest.fail("draws weights"))
    path, listed = folders
    bad = path.parent / "bad.txt"
    for text, message in (("", "found none"), ("clip1 3 12\n", "label in 0..11"), ("clip1 3", "line 1: ")):
        bad.write_text(text)
        with pytest.raises(UserError, match=f"{bad}.*{message}"):
            loop.train(listed(**{f"{split}_list": str(bad)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_so_are_class_names_and_mirrored_classes(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "build", lambda *_: pytest.fail("draws weights"))
    path, listed = folders
    bad = path.parent / "bad.txt"
    bad.write_text("walk\nrun\n")
    with pytest.raises(UserError, match=f"class names {bad}: expected 12 lines, found 2"):
        loop.train(listed(class_names=str(bad)), tmp_path / "run")
    with pytest.raises(UserError, match=f"mirrored classes {bad}, line 1: expected two classes separated by"):
        loop.train(listed(flip=0.5, flip_labels=str(bad)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_list_that_became_shorter(folders, tmp_path, monkeypatch, idle_step):
    path, listed = folders
    monkeypatch.setattr(loop, "Evaluator", lambda *_: lambda *_: {"loss": 1.0, "top1": 0.0, "clips": 24.0})
    loop.train(listed(), tmp_path / "run")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:16]))
    with pytest.raises(UserError, match="a run of at most 2 steps, found one of 3; have the clips"):
        loop.train(listed(), tmp_path / "run")


@pytest.mark.parametrize("kind", ["clips", "frames"])
def test_the_config_for_videos_trains_on_real_clips(clips, tmp_path, kind):
    for split, count in (("train", 16), ("val", 8)):
        lines = (clips / f"{split}_{kind}.txt").read_text().splitlines()
        chosen = lines[:: len(lines) // count][:count]
        (tmp_path / f"{split}.txt").write_text("\n".join(chosen))
    values = runpy.run_path(str(CONFIGS / "video_list.py"))["get_config"]()
    values.model.name = "adafuse_tsn_tiny"
    values.model.fusion_stages = (3,)
    values.data.update(
        num_frames=2, image_size=32, resize=36, root=str(clips), class_names=str(clips / "classes.txt")
    )
    values.data.train_list, values.data.val_list = str(tmp_path / "train.txt"), str(tmp_path / "val.txt")
    values.train.update(epochs=1.0, batch_size=8, eval_batch_size=8)
    values.optimizer.warmup_epochs = 0.5
    result = loop.train(Config.from_dict(values.to_dict()), tmp_path / "run")
    assert (result["step"], result["clips"], result["unreadable"]) == (2, 8, 0)
    assert 0 < result["gmacs_per_clip"] < result["dense_gmacs_per_clip"]
    assert read_meta(tmp_path / "run")["class_names"] == ["Jump", "Run", "Sit", "Stand", "Turn", "Walk"]
