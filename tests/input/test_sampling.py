"""Frame indices against the published tables (1-based there), and what holds for any clip."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adafuse_jax.errors import UserError
from adafuse_jax.input.sampling import spread_indices, training_indices, validation_indices

LENGTHS = range(1, 201)
numbers = st.integers(1, 5000)
lengths = st.integers(1, 64)


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


@pytest.mark.parametrize("n, T", [(0, 8), (8, 0)])
def test_nothing_to_sample(n, T):
    for function in (
        validation_indices,
        spread_indices,
        lambda n, T: training_indices(n, T, random.randrange),
    ):
        with pytest.raises(UserError, match="expected at least 1, found 0"):
            function(n, T)
