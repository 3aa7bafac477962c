"""Prepared data under dense sampling: whole clips, or a clear refusal."""

import cv2
import numpy as np
import pytest

from adafuse_jax.config import Config
from adafuse_jax.errors import UserError
from adafuse_jax.input import prepared, sampling, sources


def record(num_frames, max_frames):
    stored = prepared.stored_indices(num_frames, max_frames)
    frames = [cv2.imencode(".png", np.full((8, 8, 3), i, np.uint8))[1].tobytes() for i in stored]
    return prepared.Record("clip", 1, num_frames, stored, frames)


@pytest.fixture
def source(monkeypatch):
    """A function that gives the source of prepared records under a config."""

    def source(*records, **data):
        monkeypatch.setattr(prepared, "class_names", lambda directory: ["a", "b"])
        monkeypatch.setattr(prepared, "PreparedClips", lambda directory, split: records)
        values = {"name": "prepared", "num_classes": 2, "num_frames": 4, "image_size": 8, "resize": 8}
        return sources.make_source(Config.from_dict({"data": values | data}), "val")

    return source


def test_dense_sampling_reads_the_frames_of_its_window(source):
    clip, label = source(record(100, 0), sampling="dense", test_clips=3).read(0, None)
    assert label == 1
    np.testing.assert_array_equal(clip[..., 0, 0, 0], sampling.dense_indices(100, 4, 3))


@pytest.mark.parametrize("rng", [None, np.random.default_rng(0)], ids=["evaluation", "training"])
def test_dense_sampling_wants_all_frames(source, rng):
    records = record(30, 32), record(100, 32)
    dense = source(*records, sampling="dense")
    dense.read(0, rng)  # short enough to be stored whole
    with pytest.raises(UserError, match=r"prepared with --max_frames=0.* found 32 of 100 of clip"):
        dense.read(1, rng)
    source(*records).read(1, rng)  # uniform sampling takes the nearest stored frames
