"""Frame indices against the published tables (1-based there), and what holds for any clip."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adafuse_jax.errors import UserError
from adafuse_jax.input.sampling import (
    dense_indices,
    dense_training_indices,
    shifted_indices,
    spread_indices,
    training_indices,
    validation_indices,
)

LENGTHS = range(1, 201)
numbers = st.integers(1, 5000)
lengths = st.integers(1, 64)
counts = st.integers(1, 30)


@pytest.mark.parametrize("T", [3, 8, 16])
@pytest.mark.parametrize("name, function", [("val", validation_indices), ("test", spread_indices)])
def test_published_tables(golden_units, name, function, T):
    table = golden_units[1][f"{name}_idx_T{T}"]
    np.testing.assert_array_equal([function(n, T) for n in LENGTHS], table - 1)


@pytest.mark.parametrize("T", [3, 8, 16])
def test_published_training_draws(golden_units, T):
    table = golden_units[1][f"train_idx_T{T}"]
    draw = np.random.RandomState(123).randint  # the tables were drawn from this stream, clip after clip
    np.testing.assert_array_equal([training_indices(n, T, draw) for n in LENGTHS], table - 1)


@given(numbers, lengths)
def test_indices_rise_inside_the_clip(n, T):
    for indices in (validation_indices(n, T), spread_indices(n, T), training_indices(n, T, random.randrange)):
        assert len(indices) == T
        assert indices[0] >= 0
        assert indices[-1] < n
        assert (np.diff(indices) >= 0).all()
        if n >= T:
            assert (np.diff(indices) > 0).all()


@given(numbers, lengths)
def test_validation_takes_the_middle_of_each_segment(n, T):
    indices = validation_indices(n, T)
    if n > T:
        assert list(indices) == [int(n / T / 2 + n / T * i) for i in range(T)]  # as published
        exact = (2 * np.arange(T) + 1) * n / (2 * T)
        assert (np.abs(indices + 0.5 - exact) <= 0.5 + 1e-9).all()
    else:
        np.testing.assert_array_equal(indices, [*range(n), *[n - 1] * (T - n)])


@given(numbers, lengths)
def test_training_draws_span_their_segments(n, T):
    first, last = (training_indices(n, T, draw) for draw in (lambda k: 0, lambda k: k - 1))
    if n >= T:
        np.testing.assert_array_equal(first, np.arange(T) * (n // T))
        np.testing.assert_array_equal(last, (np.arange(T) + 1) * (n // T) - 1)
    else:
        np.testing.assert_array_equal(first, validation_indices(n, T))


@given(numbers, lengths, counts)
def test_the_first_of_several_uniform_samplings_is_the_published_one(n, T, count):
    found = shifted_indices(n, T, count)
    assert found.shape == (count, T)
    np.testing.assert_array_equal(found[0], validation_indices(n, T))
    assert (found >= 0).all()
    assert (found < n).all()
    if n > T:  # one frame of each segment, in any sampling
        segments = (found + 1) * T / n
        assert (segments > np.arange(T) - 1e-9).all()
        assert (found * T / n < np.arange(T) + 1).all()


@given(st.integers(1, 300), lengths)
def test_the_second_of_two_starts_each_segment(n, T):
    if n > T:
        expected = [int(n / T * i) for i in range(T)]
        np.testing.assert_array_equal(shifted_indices(n, T, 2)[1], expected)


@given(numbers, lengths, counts)
def test_several_samplings_together_are_an_even_one(n, T, count):
    """Sorted, they are frame int(N/M * (j + c)) of M = T * count, but for rounding where that is whole."""
    if n > T:
        found = np.sort(shifted_indices(n, T, count).ravel())
        exact = n / (T * count) * (np.arange(T * count) + (0.5 if count % 2 else 0))
        assert (found <= exact + 1e-6).all()
        assert (found > exact - 1 - 1e-6).all()


def window(n, T, start):
    """By hand: frame after frame, from the start of the clip again after its end."""
    return [(start + i * max(1, 64 // T)) % n for i in range(T)]


@given(numbers, st.integers(1, 100))
def test_dense_training_draws_every_window_inside_the_clip(n, T):
    sizes = []

    def draw(k, place):
        sizes.append(k)
        return place(k)

    first = dense_training_indices(n, T, lambda k: draw(k, lambda k: 0))
    last = dense_training_indices(n, T, lambda k: draw(k, lambda k: k - 1))
    starts = max(1, n - max(64, T) + 1)
    assert sizes == [starts, starts]
    np.testing.assert_array_equal(first, window(n, T, 0))
    np.testing.assert_array_equal(last, window(n, T, starts - 1))
    if n >= max(64, T):
        for indices in (first, last):
            np.testing.assert_array_equal(np.diff(indices), max(1, 64 // T))
            assert indices[-1] < n


@given(numbers, st.integers(1, 100), counts)
def test_dense_windows_are_evenly_spaced_inside_the_clip(n, T, count):
    found = dense_indices(n, T, count)
    assert found.shape == (count, T)
    assert (found >= 0).all()
    assert (found < n).all()
    starts = found[:, 0]
    for indices, start in zip(found, starts, strict=True):
        np.testing.assert_array_equal(indices, window(n, T, start))
    last = max(0, n - max(64, T))
    if count == 1:
        assert abs(starts[0] - last / 2) <= 0.5
    else:
        assert starts[0] == 0
        assert starts[-1] == last
        assert np.ptp(np.diff(starts)) <= 1


def test_ten_dense_windows_as_tsm_takes_them():
    # 300 frames: 237 windows of 64, starts int(236 * k / 9); every eighth frame.
    starts = [0, 26, 52, 78, 104, 131, 157, 183, 209, 236]
    np.testing.assert_array_equal(dense_indices(300, 8, 10), [range(s, s + 64, 8) for s in starts])


@pytest.mark.parametrize("n, T", [(0, 8), (8, 0)])
def test_nothing_to_sample(n, T):
    for function in (
        validation_indices,
        spread_indices,
        lambda n, T: training_indices(n, T, random.randrange),
        lambda n, T: dense_training_indices(n, T, random.randrange),
        lambda n, T: shifted_indices(n, T, 2),
        lambda n, T: dense_indices(n, T, 2),
    ):
        with pytest.raises(UserError, match="expected at least 1, found 0"):
            function(n, T)


def test_no_samplings():
    for function in (shifted_indices, dense_indices):
        with pytest.raises(UserError, match="samplings of a clip: expected at least 1, found 0"):
            function(8, 8, 0)
