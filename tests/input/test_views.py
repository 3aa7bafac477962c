"""What the model sees of a clip: frames that tell their number, through every option."""

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_jax.config import Config
from adafuse_jax.input import colour, sampling, transforms, views

samplings = st.sampled_from(["uniform", "dense"])
few = settings(max_examples=30, deadline=None)


def data(**fields):
    return Config.from_dict({"data": {"num_frames": 4, "image_size": 8, "resize": 8, **fields}}).data


def numbered(count, height=8, width=8):
    """Reads frames all of whose pixels are the frame's number."""

    def read_frames(choose):
        indices = np.asarray(choose(count))
        assert indices.ndim == 1
        return [np.full((height, width, 3), i, np.uint8) for i in indices]

    return read_frames


def noisy(count, height=20, width=26, still=False):
    """Reads frames of noise; of a still clip always the same."""
    frames = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
    return lambda choose: [frames[0 if still else i] for i in choose(count)]


def told(view):
    assert (view == view[:, :1, :1, :1]).all()
    return view[:, 0, 0, 0].tolist()


@few
@given(st.integers(1, 200), st.integers(1, 12), samplings, st.integers(0, 2**32 - 1))
def test_training_takes_the_frames_of_the_configs_sampling(count, T, name, seed):
    view, mirrored = views.training_view(
        data(num_frames=T, sampling=name), numbered(count), np.random.default_rng(seed)
    )
    sample = {"uniform": sampling.training_indices, "dense": sampling.dense_training_indices}[name]
    assert told(view) == sample(count, T, np.random.default_rng(seed).integers).tolist()
    assert not mirrored


@few
@given(st.integers(1, 200), st.integers(1, 12), samplings, st.integers(1, 5), st.sampled_from([1, 3]))
def test_evaluation_takes_every_crop_of_every_sampling(count, T, name, test_clips, test_crops):
    fields = data(num_frames=T, sampling=name, test_clips=test_clips, test_crops=test_crops)
    found = views.evaluation_views(fields, numbered(count))
    assert found.shape == (views.count(fields), T, 8, 8, 3)
    sample = {"uniform": sampling.shifted_indices, "dense": sampling.dense_indices}[name]
    expected = np.repeat(sample(count, T, test_clips), test_crops, axis=0)
    assert [told(view) for view in found] == expected.tolist()


@pytest.mark.parametrize("name", ["uniform", "dense"])
def test_a_view_is_a_crop_of_a_sampling(name):
    fields = data(num_frames=3, sampling=name, test_clips=2, test_crops=3, image_size=12, resize=16)
    read_frames = noisy(90)
    found = views.evaluation_views(fields, read_frames)
    sample = {"uniform": sampling.shifted_indices, "dense": sampling.dense_indices}[name]
    for view, (clip, crop) in zip(found, itertools.product(range(2), range(3)), strict=True):
        frames = read_frames(lambda n, clip=clip: sample(n, 3, 2)[clip])
        np.testing.assert_array_equal(view, transforms.crops_along(frames, 16, 12, 3)[crop])


def test_one_view_is_the_published_one():
    fields, read_frames = data(image_size=12, resize=16), noisy(90)
    frames = read_frames(lambda n: sampling.validation_indices(n, 4))
    (found,) = views.evaluation_views(fields, read_frames)
    np.testing.assert_array_equal(found, transforms.center_crop(frames, 16, 12))


JITTERED = {"colour_jitter": (0.4, 0.4, 0.4, 0.1)}


@few
@given(st.integers(0, 2**32 - 1), samplings)
def test_all_frames_of_a_clip_get_the_same_draws(seed, name):
    fields = data(sampling=name, flip=0.5, image_size=12, resize=12, **JITTERED)
    view, _ = views.training_view(fields, noisy(90, still=True), np.random.default_rng(seed))
    assert (view == view[0]).all()


@few
@given(st.integers(0, 2**32 - 1))
def test_jitter_changes_no_other_draw(seed):
    """The options come last: with them off, a seed gives what it gave before they were there."""
    rng = np.random.default_rng(seed)
    plain, mirrored = views.training_view(data(flip=0.5), noisy(90), rng)
    expected = colour.jitter(plain, JITTERED["colour_jitter"], rng.uniform)
    found = views.training_view(data(flip=0.5, **JITTERED), noisy(90), np.random.default_rng(seed))
    np.testing.assert_array_equal(found[0], expected)
    assert found[1] == mirrored


@few
@given(st.integers(0, 2**32 - 1), samplings)
def test_the_seed_decides_everything(seed, name):
    fields = data(sampling=name, flip=0.5, **JITTERED)
    first, again, other = (
        views.training_view(fields, noisy(90), np.random.default_rng(s))[0] for s in (seed, seed, seed + 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_it_says_when_it_mirrored():
    """Of a clip that is dark on the left and bright on the right, by all its looks."""
    ramp = np.repeat(np.linspace(0, 255, 32, dtype=np.uint8)[None, :, None], 32, axis=0).repeat(3, axis=2)
    ramp = cv2.blur(ramp, (3, 3))
    seen = set()
    for seed in range(40):
        view, mirrored = views.training_view(
            data(flip=0.5), lambda choose: [ramp for _ in choose(9)], np.random.default_rng(seed)
        )
        assert mirrored == (int(view[0, 0, 0, 0]) > int(view[0, 0, -1, 0]))
        seen.add(mirrored)
    assert seen == {True, False}
