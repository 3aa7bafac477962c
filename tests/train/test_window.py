"""A window of steps: its sum and its count of skipped steps are those of the steps, interrupted or not."""

import json

import chex
import jax.numpy as jnp
import pytest

from adafuse_jax.errors import UserError
from adafuse_jax.train.metrics import Metrics
from adafuse_jax.train.window import EMPTY, Window


def step(number, skipped=False):
    """What a step gives: a third, so that sums depend on their order."""
    third = jnp.float32(number / 3)
    sites = ("a",)
    given = Metrics(
        third, third, third, third, third, jnp.full((1, 2), third), jnp.zeros(()), sites, ("x", "y")
    )
    return given.unless_skipped(jnp.asarray(not skipped))


@pytest.mark.parametrize("interrupted", [[], [3], [1, 2, 5], [7]])
def test_the_sum_does_not_tell_of_interruptions(interrupted):
    whole, window = Window(2), Window(2)
    window.set_state(EMPTY)
    for number in range(1, 8):
        whole.add(number, step(number))
        window.add(number, step(number))
        if number in interrupted:
            state = json.loads(json.dumps(window.get_state()))
            window = Window(2)
            window.set_state(state)
    assert whole.get_state() == window.get_state()
    if interrupted != [7]:  # where no step followed, there is none to take
        chex.assert_trees_all_equal(whole.take(), window.take())
        assert whole.get_state() == EMPTY


@pytest.mark.parametrize("saved", [False, True])
def test_steps_skipped_in_a_row(saved):
    window = Window(2)
    for number, skipped in enumerate([True, True, False, True, True], 1):
        window.add(number, step(number, skipped))
        if saved:
            state = window.get_state()
            window = Window(2)
            window.set_state(state)
    window.fetch()
    assert window.skipped_in_a_row == 2
    window.add(6, step(6, True))
    with pytest.raises(
        UserError, match=r"^step 6: .* found none in 3 steps in a row \(config.train.max_skip"
    ):
        window.fetch()
