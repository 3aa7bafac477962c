"""Crops against the published cases and against Pillow; invariants of crops and flips."""

import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from adafuse_jax.errors import UserError
from adafuse_jax.input import transforms

SCALES = (1.0, 0.875, 0.75, 0.66)
sides = st.integers(1, 400)


def noise(height, width, frames=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def test_published_crops(golden_units):
    for name, case in golden_units[0]["crops"].items():
        width, height = map(int, name.split("x"))
        sizes = transforms.crop_sizes(width, height, 224, SCALES)
        assert [list(size) for size in sizes] == case["pairs_wh"]
        # The table calls it the first pair; its numbers are those of the last and smallest.
        offsets = transforms.crop_offsets(width, height, *sizes[-1])
        assert [list(offset) for offset in offsets] == case["offsets_first_pair"]
        draw = random.Random(9).randrange
        for expected in case["seq_seed9_w_h_x_y"]:
            assert list(transforms.draw_crop(width, height, 224, SCALES, draw)) == expected


@given(sides, sides, st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_crops_lie_inside_the_image(width, height, size, seed):
    w, h, x, y = transforms.draw_crop(width, height, size, SCALES, np.random.default_rng(seed).integers)
    assert w >= 1
    assert h >= 1
    assert 0 <= x <= width - w
    assert 0 <= y <= height - h


def test_a_side_near_the_output_size_snaps_to_it_but_not_beyond_the_image():
    assert transforms.crop_sizes(226, 300, 224, (1.0,)) == [(224, 224)]
    assert transforms.crop_sizes(227, 300, 224, (1.0,)) == [(227, 227)]
    assert transforms.crop_sizes(222, 300, 224, (1.0,)) == [(222, 222)]


@pytest.mark.parametrize("scales", [(), (0.0,), (1.2,)])
def test_wrong_scales(scales):
    with pytest.raises(UserError, match=r"shares in \(0, 1\]"):
        transforms.crop_sizes(64, 64, 32, scales)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_all_frames_get_the_same_crop(seed):
    frames = np.repeat(noise(40, 56, frames=1), 3, axis=0)
    crops = transforms.multi_scale_crop(frames, 24, SCALES, random.Random(seed).randrange)
    assert crops.shape == (3, 24, 24, 3)
    assert (crops == crops[0]).all()


def test_a_crop_of_the_output_size_copies_pixels():
    frames = noise(32, 40)
    crop = transforms.multi_scale_crop(frames, 32, (1.0,), lambda n: n - 1)  # the last of 13 places
    x, y = transforms.crop_offsets(40, 32, 32, 32)[-1]
    np.testing.assert_array_equal(crop, frames[:, y : y + 32, x : x + 32])


def test_enlarging_a_crop_is_pillows_bilinear():
    frames = noise(20, 20)
    crop = transforms.multi_scale_crop(frames, 48, (1.0,), lambda n: 0)
    pillow = [np.asarray(Image.fromarray(f).resize((48, 48), Image.Resampling.BILINEAR)) for f in frames]
    assert np.abs(crop.astype(int) - pillow).max() <= 1


@pytest.mark.parametrize("size", [8, 16])
def test_shrinking_a_crop_by_two_or_more_averages(size):
    # Single-pixel stripes are grey from afar; picking pixels would leave stripes or one colour.
    stripes = np.zeros((1, 32, 32, 3), np.uint8)
    stripes[:, :, ::2] = 200
    crop = transforms.multi_scale_crop(stripes, size, (1.0,), lambda n: 0)
    np.testing.assert_array_equal(crop, 100)


def widened_triangle(before, after):
    """(after, before) matrix of the antialiased bilinear filter: as wide as the scale when shrinking."""
    scale = before / after
    centres = (np.arange(after)[:, None] + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(before) + 0.5 - centres) / max(scale, 1))
    return weights / weights.sum(1, keepdims=True)


@given(st.integers(8, 90), st.integers(8, 90), st.integers(10, 60), st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_center_crop_is_the_centre_of_the_filtered_image(width, height, size, more):
    frames, resize = noise(height, width), size + more
    short = min(width, height)
    w, h = (resize if side == short else int(resize * side / short) for side in (width, height))
    left, top = round((w - size) / 2), round((h - size) / 2)
    rows, columns = widened_triangle(height, h), widened_triangle(width, w)
    exact = np.einsum("ah,thwc,bw->tabc", rows, frames.astype(float), columns, optimize=True)
    found = transforms.center_crop(frames, resize, size)
    assert found.shape == (2, size, size, 3)
    # Pillow rounds to whole brightnesses after each of the two directions.
    assert np.abs(found - exact[:, top : top + size, left : left + size]).max() <= 1.01


def test_center_crop_larger_than_the_image():
    with pytest.raises(UserError, match="at most the resized side 20, found 24"):
        transforms.center_crop(noise(32, 32), 20, 24)


@given(st.integers(8, 90), st.integers(8, 90), st.integers(10, 60), st.integers(0, 20))
@example(width=12, height=13, size=10, more=1)  # becomes a square
@settings(max_examples=30, deadline=None)
def test_three_crops_are_the_start_the_centre_and_the_end_of_the_long_side(width, height, size, more):
    frames, resize = noise(height, width), size + more
    start, centre, end = transforms.crops_along(frames, resize, size, 3)
    np.testing.assert_array_equal(centre, transforms.center_crop(frames, resize, size))
    np.testing.assert_array_equal(transforms.crops_along(frames, resize, size, 1), [centre])
    # The whole resized image: what each crop is a window of.
    long = int(resize * max(width, height) / min(width, height))
    w, h = (long, resize) if width >= height else (resize, long)
    whole = np.stack(
        [np.asarray(Image.fromarray(f).resize((w, h), Image.Resampling.BILINEAR)) for f in frames]
    )
    if width >= height:
        whole, start, end = (a.swapaxes(1, 2) for a in (whole, start, end))
    across = round((resize - size) / 2)
    np.testing.assert_array_equal(start, whole[:, :size, across : across + size])
    np.testing.assert_array_equal(end, whole[:, long - size :, across : across + size])


@given(st.integers(20, 60), st.integers(20, 60))
@settings(max_examples=20, deadline=None)
def test_three_crops_at_full_resolution_hold_every_pixel_of_a_clip_up_to_three_to_one(short, long):
    if short <= long <= 3 * short:
        frames = noise(short, long, frames=1)
        start, centre, end = transforms.crops_along(frames, short, short, 3)
        offset = round((long - short) / 2)
        seen = np.zeros_like(frames)
        for x, crop in ((0, start), (offset, centre), (long - short, end)):
            seen[:, :, x : x + short] = crop
        np.testing.assert_array_equal(seen, frames)


def test_other_numbers_of_crops():
    for count in (0, 2, 4):
        with pytest.raises(UserError, match=f"crops of a clip: expected 1 or 3, found {count}"):
            transforms.crops_along(noise(32, 32), 20, 20, count)


def test_flip():
    frames = noise(5, 7)
    flipped = transforms.horizontal_flip(frames)
    np.testing.assert_array_equal(flipped[:, :, 0], frames[:, :, -1])
    np.testing.assert_array_equal(transforms.horizontal_flip(flipped), frames)
