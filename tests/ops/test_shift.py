"""TSM's shifts, bidirectional (golden) and online."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adafuse_jax.ops import shift


def test_golden(golden_units):
    _, arrays = golden_units
    x, wanted = (
        arrays[key].transpose(0, 2, 3, 1).reshape(2, 4, 2, 2, 20) for key in ("shift_in", "shift_out_T4_div8")
    )
    with jax.enable_x64(True):
        np.testing.assert_array_equal(shift.temporal_shift(x, 8), wanted)


def clip(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("frames", [1, 4])
def test_bidirectional_moves_two_parts_one_frame_each(frames):
    x = clip(2, frames, 3, 16)
    out = np.asarray(shift.temporal_shift(x, 8))
    zero = np.zeros_like(x[:, 0, :, :2])
    for t in range(frames):
        np.testing.assert_array_equal(out[:, t, :, :2], x[:, t + 1, :, :2] if t + 1 < frames else zero)
        np.testing.assert_array_equal(out[:, t, :, 2:4], x[:, t - 1, :, 2:4] if t else zero)
        np.testing.assert_array_equal(out[:, t, :, 4:], x[:, t, :, 4:])


@pytest.mark.parametrize("div", [2, 8])
def test_online_clip_equals_the_scan_of_its_step(div):
    x = clip(2, 5, 3, 3, 16)
    carry = jnp.zeros((2, 3, 3, 16 // div))
    _, frames = jax.lax.scan(shift.online_shift_step, carry, jnp.moveaxis(x, 1, 0))
    np.testing.assert_array_equal(shift.online_shift(x, div), jnp.moveaxis(frames, 0, 1))


def test_online_is_causal_and_bidirectional_is_not():
    x = clip(1, 5, 16)
    other = x.copy()
    other[:, 3:] += 1
    np.testing.assert_array_equal(shift.online_shift(x)[:, :3], shift.online_shift(other)[:, :3])
    assert (shift.temporal_shift(x)[:, 2] != shift.temporal_shift(other)[:, 2]).any()


def test_too_few_channels_to_shift_stay():
    x = clip(1, 3, 7)
    np.testing.assert_array_equal(shift.temporal_shift(x, 8), x)
    np.testing.assert_array_equal(shift.online_shift(x, 8), x)
