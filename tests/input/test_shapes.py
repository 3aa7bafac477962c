"""Drawing: the torus, the sense of the angle, and the scale."""

import numpy as np
import pytest

from adafuse_jax.input.shapes import OUTLINES, Thing, paint, sprite, texture, tint

SIDE = 64  # a power of 2: whole pixels are exact shares of it


def picture(shape: str, radius: float, seed: int = 0) -> np.ndarray:
    thing = Thing(shape, np.array([[0.5, 0.5, radius, 0.0]]))
    return sprite(np.random.default_rng(seed), thing, np.full(3, 0.9), SIDE)


def painted(shape: str, x=0.5, y=0.5, radius=0.25, angle=0.0) -> np.ndarray:
    frame = np.zeros((SIDE, SIDE, 3), np.float32)
    paint(frame, picture(shape, 0.25), np.array([x, y, radius, angle]))
    return frame


@pytest.mark.parametrize("shape", OUTLINES)
@pytest.mark.parametrize("pixels", [(32, 0), (0, 32), (-20, 30), (7, -50)])
def test_a_shift_is_a_roll(shape, pixels):
    """On a torus, where a thing lies makes no difference to how it looks."""
    dx, dy = pixels
    moved = painted(shape, x=0.5 + dx / SIDE, y=0.5 + dy / SIDE)
    np.testing.assert_allclose(moved, np.roll(painted(shape), (dy, dx), (0, 1)), atol=1e-5)


@pytest.mark.parametrize("shape", OUTLINES)
def test_a_quarter_turn_is_clockwise_on_the_screen(shape):
    upright, turned = painted(shape), painted(shape, angle=90.0)
    about = np.roll(upright, (-32, -32), (0, 1))  # the centre of the thing to pixel (0, 0)
    # Clockwise with y down: what lay at (x, y) of the centre lies at (-y, x).
    expected = np.roll(np.rot90(about, -1), (0, 1), (0, 1))
    np.testing.assert_allclose(np.roll(turned, (-32, -32), (0, 1)), expected, atol=1e-4)


def test_an_arrow_at_angle_0_points_right():
    columns = painted("arrow")[..., 0].sum(0)
    assert columns[32:].sum() > 1.1 * columns[:32].sum()


def test_area_grows_with_the_square_of_the_radius():
    areas = [(painted("circle", radius=r) > 0.3).mean() for r in (0.125, 0.25)]
    assert areas[1] / areas[0] == pytest.approx(4, rel=0.1)
    assert areas[1] == pytest.approx(np.pi * 0.25**2, rel=0.1)


def test_a_thing_hides_what_lies_behind_it_and_nothing_else():
    frame = np.full((SIDE, SIDE, 3), 5.0, np.float32)
    paint(frame, picture("square", 0.25), np.array([0.5, 0.5, 0.25, 45.0]))
    assert frame[32, 32].max() < 2
    assert (frame[:8] == 5).all() and (frame[:, -8:] == 5).all()


def test_all_textures_keep_near_their_colour():
    colour = np.array([0.2, 0.5, 0.8])
    rng = np.random.default_rng(0)
    means = np.mean([texture(rng, 32, colour, 0.1).mean((0, 1)) for _ in range(100)], 0)
    np.testing.assert_allclose(means, colour, atol=0.02)


def test_tint_leaves_brightness():
    hue = tint(np.random.default_rng(0), 0.2)
    assert hue.sum() == pytest.approx(0, abs=1e-12)
    assert np.linalg.norm(hue) == pytest.approx(0.2)
