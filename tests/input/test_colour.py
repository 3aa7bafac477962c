"""Colour jitter against its definition, colour by colour, and what it leaves as it is."""

import colorsys
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_jax.input import colour

LUMA = np.array([0.299, 0.587, 0.114])
NOTHING = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "turn": 0.0}
seeds = st.integers(0, 2**32 - 1)
factors = st.floats(0, 2)
turns = st.floats(-0.5, 0.5)
strengths = st.tuples(*[st.floats(0, 1)] * 3, st.floats(0, 0.5))


def noise(seed, low=0, high=256, frames=3):
    return np.random.default_rng(seed).integers(low, high, (frames, 8, 9, 3), np.uint8)


def changed(clip, **factors):
    return colour.change(clip, **NOTHING | factors).astype(float)


@given(seeds, seeds)
@settings(max_examples=20)
def test_no_strength_is_the_identity(seed, draws):
    clip = noise(seed)
    np.testing.assert_array_equal(colour.jitter(clip, (0, 0, 0, 0), random.Random(draws).uniform), clip)
    np.testing.assert_array_equal(colour.change(clip, **NOTHING), clip)


@given(seeds, strengths, seeds)
@settings(max_examples=30)
def test_every_frame_gets_the_same(seed, strengths, draws):
    """The order of the frames, mirroring and repeated frames make no difference to a pixel."""
    clip = noise(seed, frames=4)

    def jittered(clip):
        return colour.jitter(clip, strengths, random.Random(draws).uniform)

    expected = jittered(clip)
    np.testing.assert_array_equal(jittered(clip[::-1]), expected[::-1])
    np.testing.assert_array_equal(jittered(clip[:, :, ::-1]), expected[:, :, ::-1])
    np.testing.assert_array_equal(jittered(np.tile(clip, (2, 1, 1, 1))), np.tile(expected, (2, 1, 1, 1)))


@given(strengths, seeds)
def test_draws_stay_within_their_strengths(strengths, seed):
    asked = []

    def uniform(low, high):
        asked.append((low, high))
        return random.Random(seed).uniform(low, high)

    clip = noise(0)
    found = colour.jitter(clip, strengths, uniform)
    assert asked == [(c - s, c + s) for c, s in zip((1, 1, 1, 0), strengths, strict=True)]
    again = [random.Random(seed).uniform(low, high) for low, high in asked]
    np.testing.assert_array_equal(found, colour.change(clip, *again))


def by_definition(clip, name, factor):
    """One change in floating point, neither cut nor rounded."""
    luma = (clip @ LUMA)[..., None]
    centre = {"brightness": 0.0, "contrast": luma.mean(), "saturation": luma}[name]
    return centre + factor * (clip - centre)


@given(seeds, st.sampled_from(["brightness", "contrast", "saturation"]), factors)
@settings(max_examples=40)
def test_each_factor_by_its_definition(seed, name, factor):
    clip = noise(seed)
    expected = by_definition(clip.astype(float), name, factor)
    assert np.abs(changed(clip, **{name: factor}) - expected.clip(0, 255)).max() <= 1


@given(seeds, factors, factors, factors, st.booleans())
@settings(max_examples=30)
def test_all_four_are_one_after_the_other(seed, brightness, contrast, saturation, half):
    """A hue turned half round lies as far on the other side of grey."""
    clip = noise(seed)
    expected = clip.astype(float)
    steps = {
        "brightness": brightness,
        "contrast": contrast,
        "saturation": -saturation if half else saturation,
    }
    for name, factor in steps.items():
        expected = by_definition(expected, name, factor)
    found = colour.change(clip, brightness, contrast, saturation, half / 2)
    assert np.abs(found - expected.clip(0, 255)).max() <= 1


@given(seeds, factors, turns)
@settings(max_examples=30)
def test_saturation_and_hue_leave_brightness_and_grey(seed, saturation, turn):
    mild = noise(seed, 110, 140)  # stays within 0..255
    found = changed(mild, saturation=saturation, turn=turn)
    assert np.abs(found @ LUMA - mild @ LUMA).max() <= 1
    grey = np.repeat(mild[..., :1], 3, axis=-1)
    assert np.abs(changed(grey, saturation=saturation, turn=turn) - grey).max() <= 1


@given(seeds, turns)
@settings(max_examples=20)
def test_the_hue_turns_in_yiq(seed, turn):
    """Colour as a complex number, by the standard library's YIQ of two digits: it turns, its length stays."""
    clip = noise(seed, 110, 140, frames=1)
    found = changed(clip, turn=turn)
    for before, after in zip(clip.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        _, i, q = colorsys.rgb_to_yiq(*before.astype(float))
        _, turned_i, turned_q = colorsys.rgb_to_yiq(*after)
        expected = complex(i, q) * np.exp(2j * np.pi * turn)
        assert abs(complex(turned_i, turned_q) - expected) < 2


def test_a_turn_there_and_back():
    clip = noise(0, 100, 150)
    back = changed(changed(clip, turn=0.2).astype(np.uint8), turn=-0.2)
    assert np.abs(back - clip).max() <= 2
    assert np.abs(changed(clip, turn=0.2) - clip).max() > 10


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 5, 3, 3)])
def test_any_shape(shape):
    clip = np.full(shape, 100, np.uint8)
    np.testing.assert_array_equal(changed(clip, brightness=1.5), np.full(shape, 150))
