"""Reading prepared data: the clips that the raw files give, and nothing else."""

import itertools
import pickle
import threading

import cv2
import numpy as np
import owner_files
import pytest

from adafuse_jax.config import Config
from adafuse_jax.errors import UserError
from adafuse_jax.input import pipeline, transforms
from adafuse_jax.input.decode import UnreadableClip
from adafuse_jax.input.prepared import PreparedClips
from data import prepare
from data.encode import shrink


def prepared(tmp_path, manual_dir, *options):
    arguments = ["--manual_dir", manual_dir, "--data_dir", tmp_path / "prepared", "--workers", 1, *options]
    assert prepare.main(["video_list", *map(str, arguments)]) == 0
    return tmp_path / "prepared" / "video_list" / "1.0.0"


def configs(root, directory, **data):
    """The config of the raw lists, and that of what was prepared from them."""
    data = {"num_classes": 3, "image_size": 16, "resize": 20, "flip": 0.5} | data
    raw = {"train_list": str(root / "train.txt"), "val_list": str(root / "val.txt"), "root": str(root)}
    return (
        Config.from_dict({"data": {"name": "video_list", **raw, **data}}),
        Config.from_dict({"data": {"name": "prepared", "prepared_dir": str(directory), **data}}),
    )


def batches(config, count=6):
    train = itertools.islice(pipeline.make_train(config, batch_size=4, seed=5), count)
    return list(train), list(pipeline.make_eval(config, batch_size=2))


def told(batch):
    return [owner_files.numbers(clip) for clip in batch["clip"]]


def test_batches_hold_the_frames_that_the_raw_files_give(tmp_path):
    """Each frame tells its number: the indices drawn are the same ones."""
    owner_files.video_list(tmp_path)
    for ours, theirs in zip(*map(batches, configs(tmp_path, prepared(tmp_path, tmp_path))), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a["label"], b["label"])
            np.testing.assert_array_equal(a["weight"], b["weight"])
            assert a["weight"].any()
            assert told(a) == told(b)
            np.testing.assert_allclose(a["clip"].astype(int), b["clip"].astype(int), atol=2)


def test_evaluation_takes_its_own_frames_of_clips_longer_than_what_is_stored(tmp_path):
    owner_files.video_list(tmp_path, train=4, frames=38)
    raw, stored = (batches(c, 0)[1] for c in configs(tmp_path, prepared(tmp_path, tmp_path)))
    assert [told(b) for b in stored] == [told(b) for b in raw]


def test_batches_of_real_clips(clips, tmp_path):
    """Crops and flips too: the pixels differ by the JPEGs alone."""
    names = {"train": "train_clips.txt", "val": "val_clips.txt"}
    for split, name in names.items():
        lines = (clips / name).read_text().splitlines()[:: 37 if split == "train" else 32]
        (tmp_path / f"{split}.txt").write_text("".join(f"{clips}/{line}\n" for line in lines))
    directory = prepared(tmp_path, tmp_path, "--max_frames", 0)
    sizes = {"num_classes": 6, "image_size": 112, "resize": 128}
    for raw, stored in zip(*map(batches, configs(tmp_path, directory, **sizes)), strict=True):
        for a, b in zip(raw, stored, strict=True):
            np.testing.assert_array_equal(a["label"], b["label"])
            difference = np.abs(a["clip"].astype(int) - b["clip"])
            assert difference.mean() < 1
            assert difference.max() < 60


def test_shrinking_to_the_side_that_evaluation_resizes_to_changes_no_pixel_of_it():
    rng = np.random.default_rng(0)
    for height, width in ((60, 97), (97, 60), (48, 48), (47, 90)):
        frame = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), np.uint8), (0, 0), 2)
        small = shrink(frame, 48)
        assert min(small.shape[:2]) == min(48, height, width)
        np.testing.assert_array_equal(
            transforms.center_crop([small], 48, 40), transforms.center_crop([frame], 48, 40)
        )
    assert shrink(frame, 48) is frame


def test_reading_from_threads_and_from_a_pickled_copy(tmp_path):
    owner_files.video_list(tmp_path)
    clips = PreparedClips(prepared(tmp_path, tmp_path, "--shard_clips", 2), "train")
    expected = [(clips[i].name, clips[i].label, list(clips[i].frames)) for i in range(len(clips))]
    wrong = []

    def read(source, seed):
        for i in np.random.default_rng(seed).integers(len(source), size=50):
            record = source[i]
            if (record.name, record.label, list(record.frames)) != expected[i]:
                wrong.append(i)

    copy = pickle.loads(pickle.dumps(clips))
    threads = [threading.Thread(target=read, args=(s, i)) for i, s in enumerate([clips, copy] * 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(expected) == 6
    assert not wrong


def test_data_that_cannot_be_trained_on(tmp_path):
    owner_files.video_list(tmp_path, train=2)
    directory = prepared(tmp_path, tmp_path)

    def opened(**data):
        return pipeline.make_source(configs(tmp_path, directory, **data)[1], "train")

    with pytest.raises(UserError, match=r"config.data.num_classes: prepared has 3, found 4"):
        opened(num_classes=4)
    with pytest.raises(UserError, match=r"config.data.prepared_dir: expected a folder .* found nothing"):
        opened(prepared_dir="")
    with pytest.raises(UserError, match=rf"dataset_info.json.*did you mean {directory}\?"):
        opened(prepared_dir=str(tmp_path / "prepared"))
    with pytest.raises(UserError, match="expected the split 'test', found train, validation"):
        PreparedClips(directory, "test")
    (shard,) = directory.glob("*train.array_record*")
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableClip, match=r"clip 1 of train"):
        opened()._clips[1]
    shard.unlink()
    with pytest.raises(UserError, match=f"expected the shard {shard.name}, found none"):
        opened()
