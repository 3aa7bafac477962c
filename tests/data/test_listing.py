"""Labels as their owners publish them, and mistakes in them named."""

import json
import re

import owner_files
import pytest

from adafuse_jax.errors import UserError
from data import prepare
from data.listing import UNKNOWN


def listing(name, root, **options):
    return prepare.BUILDERS[name](data_dir=root / "out", **options).listing(root)


def labels(listing):
    return {split: [(item.name, item.label) for item in items] for split, items in listing.splits.items()}


def test_something_something_v1(tmp_path):
    found = listing("something_something_v1", owner_files.something_something_v1(tmp_path))
    assert found.class_names == ["Holding something", "Turning something upside down", "Closing something"]
    assert labels(found) == {
        "train": [("100218", 2), ("7", 0), ("31", 1), ("32", 0)],
        "validation": [("48032", 1), ("9", 2)],
        "test": [("1420", UNKNOWN)],
    }


def test_jester(tmp_path):
    """The names of the newer download, which brings the answers of the test split."""
    found = listing("jester", owner_files.jester(tmp_path))
    assert found.class_names == ["Swiping Left", "Swiping Right", "Doing other things"]
    assert labels(found) == {
        "train": [("1", 2), ("2", 0)],
        "validation": [("3", 1)],
        "test": [("4", 1), ("5", 0)],
    }


@pytest.mark.parametrize(
    "prefix",
    ["labels/", "something-something-v2-", "20bn-something-something-download-package-labels/labels/"],
)
def test_something_something_v2(tmp_path, prefix):
    found = listing("something_something_v2", owner_files.something_something_v2(tmp_path, prefix))
    assert found.class_names == [
        "Holding something next to something",
        "Pushing something so that it falls",
        "Folding something",
    ]
    assert labels(found) == {
        "train": [("78687", 0), ("3", 1), ("41", 2)],
        "validation": [("12", 2)],
        "test": [("99", UNKNOWN)],
    }


def test_mini_kinetics_by_folders_and_by_list(tmp_path):
    owner_files.mini_kinetics(tmp_path)
    found = listing("mini_kinetics", tmp_path)
    assert found.class_names == ["air drumming", "archery"]
    assert labels(found) == {
        "train": [("c_000005_000015", 0), ("a_000001_000011", 1), ("b_000000_000010", 1)],
        "validation": [("e_000000_000010", 0), ("d_000000_000010", 1)],
    }
    (tmp_path / "classes.txt").write_text("archery\n")
    assert labels(listing("mini_kinetics", tmp_path))["validation"] == [("d_000000_000010", 0)]
    (tmp_path / "two").write_text("archery\nair drumming\n")
    found = listing("mini_kinetics", tmp_path, classes=tmp_path / "two")
    assert found.class_names == ["archery", "air drumming"]
    assert labels(found)["validation"] == [("d_000000_000010", 0), ("e_000000_000010", 1)]
    (tmp_path / "train" / "air drumming").rename(tmp_path / "train" / "air_drumming")
    assert labels(listing("mini_kinetics", tmp_path, classes=tmp_path / "two")) == labels(found)


def test_video_list(tmp_path):
    found = listing("video_list", owner_files.video_list(tmp_path, train=3))
    assert found.class_names == ["jump", "run", "sit"]
    assert labels(found)["train"] == [("clips/train 0.mp4", 0), ("clips/train 1.mp4", 1), ("frames/train", 2)]
    (tmp_path / "classes.txt").unlink()
    assert listing("video_list", tmp_path).class_names == ["0", "1", "2"]


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "train.csv",
            "7;Holding",
            "7;Folding",
            r"train.csv: clip 7: .* 3 classes, found 'Folding something'",
        ),
        ("train.csv", "7;Holding something", "7", "clip 7: .*found ''"),
        (
            "train.csv",
            "31;",
            "48032;",
            "clip 48032: expected once in all splits, found in train and in validation",
        ),
        ("train.csv", "31;", "7;", "clip 7: .*found twice in train"),
        ("test.csv", "1420", "9", "clip 9: .*found in validation and in test"),
        ("labels.csv", "Closing", "Holding", "class 'Holding something': expected once"),
    ],
)
def test_mistakes_in_csv_labels(tmp_path, file, old, new, message):
    owner_files.something_something_v1(tmp_path)
    edit(tmp_path / f"something-something-v1-{file}", old, new)
    with pytest.raises(UserError, match=message):
        listing("something_something_v1", tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train.json", [{"id": "1", "template": "Eating [something]"}], "clip 1: .*found 'Eating something'"),
        (
            "train.json",
            [{"id": "12", "template": "Folding [something]"}],
            "clip 12: .*in train and in validation",
        ),
        ("train.json", [{"id": "1"}], "expected a list of entries with id and template"),
        ("train.json", {"id": "1"}, "expected a list of entries"),
        ("labels.json", {"Folding something": "1"}, r"expected each index of 0\.\.0 once"),
        ("labels.json", ["Folding something"], "expected {class: index}"),
    ],
)
def test_mistakes_in_json_labels(tmp_path, file, content, message):
    owner_files.something_something_v2(tmp_path)
    (tmp_path / "labels" / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        listing("something_something_v2", tmp_path)


def test_mistakes_in_folders(tmp_path):
    with pytest.raises(UserError, match="expected the folder 20bn-jester-v1 of clips"):
        listing("jester", tmp_path)
    (tmp_path / "20bn-jester-v1").mkdir()
    with pytest.raises(UserError, match=r"expected jester-v1-labels.csv or labels.csv there"):
        listing("jester", tmp_path)
    with pytest.raises(UserError, match="expected the folder train of clips"):
        listing("mini_kinetics", tmp_path)
    with pytest.raises(UserError, match=r"expected train.txt or --train_list"):
        listing("video_list", tmp_path)


def test_mistakes_in_mini_kinetics(tmp_path):
    owner_files.mini_kinetics(tmp_path)
    (tmp_path / "val" / "bowling").mkdir()
    with pytest.raises(UserError, match="bowling: expected a class that train/ has"):
        listing("mini_kinetics", tmp_path)
    (tmp_path / "classes.txt").write_text("archery\nbowling\n")
    with pytest.raises(
        UserError, match=re.escape(f"{tmp_path}/train: expected the folder of class 'bowling'")
    ):
        listing("mini_kinetics", tmp_path)
    (tmp_path / "classes.txt").write_text("archery\n")
    (tmp_path / "val" / "archery" / "d_000000_000010.mp4").rename(
        tmp_path / "val" / "archery" / "a_000001_000011.mp4"
    )
    with pytest.raises(UserError, match=r"clip a_000001_000011: .*in train and in validation"):
        listing("mini_kinetics", tmp_path)


def test_a_clip_in_two_lists(tmp_path):
    owner_files.video_list(tmp_path, train=3)
    with open(tmp_path / "val.txt", "a") as file:
        file.write("clips/train 1.mp4 1\n")
    with pytest.raises(UserError, match=r"clip clips/train 1.mp4: .*in train and in validation"):
        listing("video_list", tmp_path)
