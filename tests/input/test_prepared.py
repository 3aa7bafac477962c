"""Stored frames: those that evaluation wants are there, and the nearest stands for any other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adafuse_jax.input.prepared import nearest, stored_indices
from adafuse_jax.input.sampling import training_indices, validation_indices


@pytest.mark.parametrize("T", [4, 8, 16])
def test_what_evaluation_wants_is_stored(T):
    """For every length of clip, to the rounding."""
    for num_frames in range(1, 3000):
        stored = stored_indices(num_frames, 32)
        wanted = validation_indices(num_frames, T)
        assert stored[nearest(wanted, stored)].tolist() == wanted.tolist()


@given(st.integers(1, 5000), st.integers(0, 64))
def test_stored_frames_are_distinct_even_and_at_most_so_many(num_frames, most):
    stored = stored_indices(num_frames, most)
    assert len(stored) == (min(num_frames, most) if most else num_frames)
    assert stored[0] == 0
    gaps = np.diff(np.append(stored, num_frames))
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


@given(st.lists(st.integers(0, 300), min_size=1, max_size=40, unique=True), st.data())
def test_nearest_is_nearest(stored, data):
    stored = sorted(stored)
    wanted = data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=8))
    for want, place in zip(wanted, nearest(wanted, stored), strict=True):
        assert stored[place] == min(stored, key=lambda index: (abs(index - want), index))


@given(st.integers(33, 2000), st.integers(0, 2**32 - 1))
def test_training_frames_stay_in_order_and_near(num_frames, seed):
    stored = stored_indices(num_frames, 32)
    wanted = training_indices(num_frames, 8, np.random.default_rng(seed).integers)
    taken = stored[nearest(wanted, stored)]
    assert (np.diff(taken) >= 0).all()
    inside = wanted <= stored[-1]
    assert np.abs(taken - wanted)[inside].max(initial=0) <= num_frames / 64 + 1
    assert np.abs(taken - wanted).max() <= num_frames / 32
