"""Which sets of actions a policy may choose from."""

import itertools

import numpy as np
import pytest

from adafuse_jax.errors import UserError
from adafuse_jax.ops import actions

USABLE = [
    ("skip", "reuse", "keep"),
    ("reuse", "keep"),
    ("skip", "keep"),
    ("skip", "reuse"),
    ("skip",),
    ("reuse",),
    ("keep",),
]


@pytest.mark.parametrize("usable", USABLE)
def test_any_order_becomes_the_order_of_released_checkpoints(usable):
    for given in itertools.permutations(usable):
        assert actions.check(given) == usable


@pytest.mark.parametrize("given", [(), ("keep", "keep"), ("skip", "keep", "keep")])
def test_sets_that_are_no_policy(given):
    with pytest.raises(UserError, match=r"actions: expected some of .*, found \("):
        actions.check(given)


def test_unknown_action_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown action 'kep' \(did you mean 'keep'\?\)"):
        actions.check(("kep", "skip"))


@pytest.mark.parametrize("usable", USABLE)
def test_every_channel_of_a_policy_chose_one_action(usable):
    policy = np.eye(len(usable), dtype=np.float32)[np.arange(6) % len(usable)]
    chosen = [actions.chosen(policy, usable, action) for action in actions.ALL]
    np.testing.assert_array_equal(sum(chosen), np.ones(6))
    for action, mask in zip(actions.ALL, chosen, strict=True):
        assert bool(mask.any()) is (action in usable)
