"""The stream of batches: each clip where it belongs, resumable, and nothing replaced silently."""

import dataclasses
import itertools
import json
import logging

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adafuse_jax.config import Config
from adafuse_jax.errors import UserError
from adafuse_jax.input import pipeline
from adafuse_jax.input.decode import UnreadableClip
from adafuse_jax.input.moving_shapes import MovingShapes
from adafuse_jax.input.sources import make_source

CLIPS = 11  # a prime: no batch size divides it


@pytest.fixture
def config(tmp_path):
    """A function giving the config of a list of 11 JPEG folders; each clip is its own class."""
    rng = np.random.default_rng(0)
    lines = []
    for label in range(CLIPS):
        (tmp_path / f"clip{label}").mkdir()
        for frame in range(1, 7):
            image = rng.integers(0, 256, (24, 32, 3), np.uint8)
            cv2.imwrite(str(tmp_path / f"clip{label}" / f"img_{frame:05d}.jpg"), image)
        lines.append(f"clip{label} 6 {label}\n")
    path = tmp_path / "list.txt"
    path.write_text("".join(lines))

    def config(**data):
        data = {"num_classes": CLIPS, "num_frames": 2, "image_size": 16, "resize": 20} | data
        return Config.from_dict({"data": {"train_list": str(path), "val_list": str(path), **data}})

    return config


def spoil(config, *labels):
    """Makes every frame of some clips unreadable."""
    for label in labels:
        for path in (make_source(config(), "val")._clips[label].path).iterdir():
            path.write_bytes(b"not a JPEG")


def train(config, batches, batch_size=4, **options):
    return list(
        itertools.islice(pipeline.make_train(config, batch_size=batch_size, seed=3, **options), batches)
    )


def labels(batches):
    return [int(label) for b in batches for label, w in zip(b["label"], b["weight"], strict=True) if w]


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_what_a_batch_is(config):
    for batch in (train(config(), 1)[0], next(pipeline.make_eval(config(), batch_size=4))):
        assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
            "clip": ((4, 2, 16, 16, 3), "uint8"),
            "label": ((4,), "int32"),
            "weight": ((4,), "float32"),
        }
        assert (batch["weight"] == 1).all()


def test_each_pass_holds_every_clip_once_in_a_new_order(config):
    order = labels(train(config(), CLIPS))  # four passes in batches of 4
    passes = [order[i : i + CLIPS] for i in range(0, len(order), CLIPS)]
    assert len(passes) == 4
    assert all(sorted(p) == list(range(CLIPS)) for p in passes)
    assert len({tuple(p) for p in passes}) == 4


def test_each_pass_samples_and_crops_anew(config):
    batches = train(config(), 12, batch_size=CLIPS)
    looks = {b["clip"][list(b["label"]).index(0)].tobytes() for b in batches}
    assert len(looks) > 6


def test_the_seed_decides(config):
    a, b = (
        labels(itertools.islice(pipeline.make_train(config(), batch_size=4, seed=seed), 5)) for seed in (3, 4)
    )
    assert a == labels(train(config(), 5))
    assert a != b
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match="seed: expected"):
            pipeline.make_train(config(), batch_size=4, seed=seed)


@pytest.mark.parametrize("start", [0, 1, 4])
@pytest.mark.parametrize("threads", [1, 3])
def test_resuming_gives_the_batches_that_would_have_come(config, start, threads):
    whole = train(config(flip=0.5), 8)
    first = pipeline.make_train(config(flip=0.5), batch_size=4, seed=3)
    for _ in range(start):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    rest = pipeline.make_train(config(flip=0.5, threads=threads), batch_size=4, seed=3)
    next(rest)  # a position set later counts from the start all the same
    rest.set_state(state)
    assert rest.position == start
    assert_equal(list(itertools.islice(rest, 8 - start)), whole[start:])
    assert rest.position == 8


@pytest.mark.parametrize("batch_size", [1, 4, 11, 16])
def test_evaluation_takes_each_clip_once_in_order(config, batch_size):
    batches = list(pipeline.make_eval(config(), batch_size=batch_size))
    assert len(batches) == -(-CLIPS // batch_size)
    assert all(b["clip"].shape == (batch_size, 2, 16, 16, 3) for b in batches)
    assert labels(batches) == list(range(CLIPS))
    padding = batches[-1]["weight"] == 0
    assert not batches[-1]["clip"][padding].any()
    assert padding.sum() == len(batches) * batch_size - CLIPS


def test_the_batch_size_changes_no_clip(config):
    clips = [
        np.concatenate([b["clip"] for b in pipeline.make_eval(config(), batch_size=n)])[:CLIPS]
        for n in (3, 11)
    ]
    np.testing.assert_array_equal(*clips)


class Numbers:
    """Clips of one pixel that are their own label; training adds a draw. Some can't be read."""

    def __init__(self, length, bad=()):
        self.length, self.bad = length, bad

    def __len__(self):
        return self.length

    def read(self, index, rng):
        if index in self.bad:
            raise UnreadableClip(f"clip{index}", "bad")
        return np.full((1, 1, 1, 3), 0 if rng is None else rng.integers(256), np.uint8), index


def numbers(length, bad=(), share=0.01, **data):
    """The config of `Numbers`, and a patch of the pipeline that reads them."""
    data = {"num_frames": 1, "image_size": 1, "resize": 1, "max_bad_share": share, **data}
    patch = pytest.MonkeyPatch()
    patch.setattr(pipeline, "make_source", lambda config, split: Numbers(length, bad))
    return Config.from_dict({"data": data}), patch


def together(shards):
    """The batches of all shards, each put together from their blocks."""
    return [
        {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
        for blocks in zip(*shards, strict=True)
    ]


few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@few
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4))
def test_evaluation_takes_each_clip_once_for_any_number_of_processes(length, count, block):
    config, patch = numbers(length)
    with patch.context():
        batch_size = count * block
        whole = list(pipeline.make_eval(config, batch_size=batch_size))
        shards = [
            list(pipeline.make_eval(config, batch_size=batch_size, shard_index=i, shard_count=count))
            for i in range(count)
        ]
        patch.undo()
    assert {len(shard) for shard in shards} == {-(-length // batch_size)}
    assert all(batch["weight"].shape == (block,) for shard in shards for batch in shard)
    seen = [label for shard in shards for label in labels(shard)]
    assert sorted(seen) == list(range(length))  # none left out, none twice
    assert_equal(together(shards), whole)


@few
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 30), st.integers(0, 2**32 - 1), st.integers(0, 4))
def test_training_is_the_same_for_any_number_of_processes(count, block, more, seed, start):
    """Together the shards read the batches of one process, draws included, wherever they go on."""
    batch_size = count * block
    config, patch = numbers(batch_size + more)
    steps = start + 2 * -(-(batch_size + more) // batch_size)  # two passes at least

    def read(start, **shard):
        batches = pipeline.make_train(config, batch_size=batch_size, seed=seed, **shard)
        batches.set_state({"position": start})
        return list(itertools.islice(batches, steps - start))

    with patch.context():
        whole = read(0)
        shards = [read(start, shard_index=i, shard_count=count) for i in range(count)]
        patch.undo()
    assert_equal(together(shards), whole[start:])
    order = labels(whole)
    for first in range(0, len(order) - len(order) % (batch_size + more), batch_size + more):
        assert sorted(order[first : first + batch_size + more]) == list(range(batch_size + more))


def test_a_shard_reads_no_clip_of_another(config, monkeypatch):
    """Each opens the files of its own rows alone."""
    opened = []
    source = make_source(config(), "val")
    read = type(source).read
    monkeypatch.setattr(type(source), "read", lambda self, i, rng: opened.append(i) or read(self, i, rng))
    list(pipeline.make_eval(config(), batch_size=4, shard_index=1, shard_count=2))
    assert sorted(opened) == [2, 3, 6, 7, 10]


def test_a_shard_counts_the_unreadable_clips_that_it_met_against_all():
    """Rows 0..9 and 20..29 of 40 are the first shard's."""
    for bad, met in ((range(5), 5), (range(10, 20), 0), (range(6, 14), 4), ((0, 1, 2, 20, 21, 22), None)):
        values, patch = numbers(40, bad, share=0.125)
        with patch.context():
            batches = pipeline.make_eval(values, batch_size=20, shard_index=0, shard_count=2)
            patch.undo()
        if met is None:
            with pytest.raises(UserError, match="6 of 40 clips can't be read, more than the share"):
                list(batches)
        else:
            list(batches)
            assert len(batches.bad) == met


def test_a_batch_that_the_processes_cannot_share(config):
    for make in (pipeline.make_eval, lambda *args, **options: pipeline.make_train(*args, seed=0, **options)):
        with pytest.raises(UserError, match="batch size: expected a multiple of the 3 processes, found 4"):
            make(config(), batch_size=4, shard_index=0, shard_count=3)


def test_flip(config):
    plain, flipped = (
        train(config(flip=flip, scales=(1.0,), image_size=24, resize=24), 3) for flip in (0.0, 1.0)
    )
    for a, b in zip(plain, flipped, strict=True):
        np.testing.assert_array_equal(a["clip"], b["clip"][:, :, :, ::-1])
        assert (a["clip"] != b["clip"]).any()


def test_mirrored_clips_take_the_label_of_their_mirror_image(config, tmp_path):
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("0\t1\n7\t4\n")
    swapped = {0: 1, 1: 0, 7: 4, 4: 7}
    plain = train(config(scales=(1.0,), image_size=24, resize=24), 6)
    looks = {"scales": (1.0,), "image_size": 24, "resize": 24, "flip_labels": str(pairs)}
    for flip in (1.0, 0.5):
        mirrored = 0
        for a, b in zip(plain, train(config(flip=flip, **looks), 6), strict=True):
            for clip, label, look, told in zip(a["clip"], a["label"], b["clip"], b["label"], strict=True):
                if (look == clip).all():
                    assert told == label
                else:
                    np.testing.assert_array_equal(look, clip[:, :, ::-1])
                    assert told == swapped.get(label, label)
                    mirrored += 1
        assert mirrored == 24 if flip == 1 else 0 < mirrored < 24
    # Evaluation mirrors nothing.
    assert labels(pipeline.make_eval(config(flip=1.0, **looks), batch_size=4)) == list(range(CLIPS))


def test_pairs_of_classes_are_read_by_name(config, tmp_path):
    pairs, names = tmp_path / "pairs.txt", tmp_path / "names.txt"
    names.write_text("".join(f"class {i}\n" for i in range(CLIPS)))
    pairs.write_text("class 0\tclass 10\n")
    data = {"flip": 1.0, "flip_labels": str(pairs), "class_names": str(names)}
    batch = next(pipeline.make_train(config(**data), batch_size=CLIPS, seed=0))
    assert sorted(batch["label"]) == list(range(CLIPS))
    pairs.write_text("class 0\tclass 11\n")
    with pytest.raises(UserError, match="'class 11'"):
        pipeline.make_train(config(**data), batch_size=4, seed=0)
    # A checkpoint is evaluated without the file.
    pairs.unlink()
    next(pipeline.make_eval(config(**data), batch_size=4))


@pytest.mark.parametrize("test_clips, test_crops", [(1, 3), (2, 1), (2, 3)])
def test_several_views_of_a_clip(config, test_clips, test_crops):
    """The published view is among them, and all else is as with one."""
    num_views = test_clips * test_crops
    spoil(config, 5)
    values = config(test_clips=test_clips, test_crops=test_crops, max_bad_share=0.5)
    several = list(pipeline.make_eval(values, batch_size=4))
    single = list(pipeline.make_eval(config(max_bad_share=0.5), batch_size=4))
    assert len(several) == len(single)
    for a, b in zip(several, single, strict=True):
        assert a["clip"].shape == (4, num_views, 2, 16, 16, 3)
        np.testing.assert_array_equal(a["label"], b["label"])
        np.testing.assert_array_equal(a["weight"], b["weight"])
        np.testing.assert_array_equal(a["clip"][:, 1 if test_crops == 3 else 0], b["clip"])
    assert (several[1]["weight"] == [1, 0, 1, 1]).all()
    assert not several[1]["clip"][1].any()
    # Training takes one.
    assert next(pipeline.make_train(values, batch_size=4, seed=0))["clip"].shape == (4, 2, 16, 16, 3)


def test_an_unreadable_clip_is_reported_and_has_no_weight(config, caplog):
    spoil(config, 5)
    data = {"max_bad_share": 0.1}
    for batches in (
        pipeline.make_eval(config(**data), batch_size=4),
        pipeline.make_train(config(**data), batch_size=4, seed=0),
    ):
        with caplog.at_level(logging.WARNING, logger="absl"):
            read = list(itertools.islice(batches, CLIPS))
        rows = np.concatenate([b["weight"] for b in read])
        seen = labels(read)
        assert 5 not in seen
        assert set(seen) == set(range(CLIPS)) - {5}
        assert list(batches.bad) == [5]  # counted once, however often it comes up
        assert "clip5/img_" in batches.bad[5]
        pixels = np.concatenate([b["clip"] for b in read])
        assert not pixels[rows == 0].any()
    reports = [r.getMessage() for r in caplog.records if "clip5/img_" in r.getMessage()]
    assert len(reports) == 2


@pytest.mark.parametrize("spoilt, share", [((5,), 0.01), ((0, 9), 0.1), ((5,), 0.0)])
def test_too_many_unreadable_clips_stop_the_run(config, spoilt, share):
    spoil(config, *spoilt)
    values = config(max_bad_share=share)
    for batches in (
        pipeline.make_eval(values, batch_size=4),
        pipeline.make_train(values, batch_size=4, seed=0),
    ):
        with pytest.raises(UserError, match=f"{len(spoilt)} of 11 clips can't be read.*clip[059]/img_"):
            list(itertools.islice(batches, 6))


def test_wrong_requests(config, tmp_path):
    with pytest.raises(UserError, match="number of training clips 11, found 12"):
        pipeline.make_train(config(), batch_size=12, seed=0)
    with pytest.raises(UserError, match="number of training clips 11, found 12"):
        pipeline.steps_per_epoch(config(), 12)
    with pytest.raises(UserError, match="number of training clips 11, found 12"):
        pipeline.make_train(config(), batch_size=12, seed=0, shard_index=1, shard_count=2)
    with pytest.raises(UserError, match=r"config\.data\.val_list: expected a list"):
        pipeline.make_eval(config(val_list=""), batch_size=4)
    with pytest.raises(UserError, match=r"absent\.txt"):
        pipeline.make_train(config(train_list=str(tmp_path / "absent.txt")), batch_size=4, seed=0)
    with pytest.raises(UserError, match="scales of the crop"):
        data = dataclasses.replace(config().data, scales=(2.0,))
        next(pipeline.make_train(dataclasses.replace(config(), data=data), batch_size=4, seed=0))


def test_steps_per_epoch(config):
    assert [pipeline.steps_per_epoch(config(), n) for n in (1, 4, 11)] == [11, 2, 1]


def test_moving_shapes():
    data = {"name": "moving_shapes", "num_classes": 12, "num_frames": 3, "image_size": 24}
    values = Config.from_dict({"data": data | {"train_clips": 6, "val_clips": 5}})
    shapes = MovingShapes("val", 3, "easy", 5, seed=0, image_size=24)
    batches = list(pipeline.make_eval(values, batch_size=3))
    clips = np.concatenate([b["clip"] for b in batches])
    assert labels(batches) == [shapes[i]["label"] for i in range(5)]
    for i in range(5):
        np.testing.assert_array_equal(clips[i], shapes[i]["clip"])
    training = MovingShapes("train", 3, "easy", 6, seed=0, image_size=24)
    batch = next(pipeline.make_train(values, batch_size=6, seed=1))
    assert sorted(clip.tobytes() for clip in batch["clip"]) == sorted(
        training[i]["clip"].tobytes() for i in range(6)
    )
    assert pipeline.steps_per_epoch(values, 4) == 1


@pytest.mark.parametrize("kind", ["clips", "frames"])
def test_real_clips(clips, kind, tmp_path):
    lines = (clips / f"train_{kind}.txt").read_text().splitlines()[::40]
    path = tmp_path / "list.txt"
    path.write_text("\n".join(lines))
    data = {"root": str(clips), "num_classes": 6, "image_size": 56, "resize": 64}
    values = Config.from_dict({"data": data | {"train_list": str(path), "val_list": str(path)}})
    expected = [int(line.split()[-1]) for line in lines]
    assert labels(pipeline.make_eval(values, batch_size=3)) == expected
    batch = next(pipeline.make_train(values, batch_size=len(lines), seed=0))
    assert sorted(batch["label"]) == sorted(expected)
    assert batch["clip"].shape == (len(lines), 8, 56, 56, 3)
    moving = np.abs(np.diff(batch["clip"].astype(int), axis=1)).max((1, 2, 3, 4))
    assert (moving > 0).all()
