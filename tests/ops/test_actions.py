"""Which sets of actions a policy may choose from."""

import itertools

import pytest

from adafuse_jax.errors import UserError
from adafuse_jax.ops import actions

USABLE = [("skip", "reuse", "keep"), ("reuse", "keep"), ("skip", "keep")]


@pytest.mark.parametrize("usable", USABLE)
def test_any_order_becomes_the_order_of_released_checkpoints(usable):
    for given in itertools.permutations(usable):
        assert actions.check(given) == usable


@pytest.mark.parametrize(
    "given", [(), ("keep",), ("skip", "reuse"), ("keep", "keep"), ("skip", "keep", "keep")]
)
def test_sets_that_are_no_policy(given):
    with pytest.raises(UserError, match=r"actions: expected 'keep' .* found \("):
        actions.check(given)


def test_unknown_action_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown action 'kep' \(did you mean 'keep'\?\)"):
        actions.check(("kep", "skip"))


def test_index_is_the_position_on_the_last_axis():
    assert [actions.index(actions.ALL, a) for a in ("skip", "reuse", "keep")] == [0, 1, 2]
    assert [actions.index(("reuse", "keep"), a) for a in ("skip", "reuse", "keep")] == [None, 0, 1]
