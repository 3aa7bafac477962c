"""What a policy can decide for a channel of a frame."""

import enum
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from adafuse_jax.errors import UserError, unknown


class Action(enum.Enum):
    """The three actions of the paper's section 3, in the order of released checkpoints."""

    SKIP = "skip"
    REUSE = "reuse"
    KEEP = "keep"


ALL = tuple(a.value for a in Action)


def check(actions: Sequence[str]) -> tuple[str, ...]:
    """The actions in the order of the policy's last axis.

    Raises:
        UserError: unless `actions` are some of skip, reuse and keep, each at most once.
    """
    for name in actions:
        if name not in ALL:
            raise unknown("action", name, ALL)
    ordered = tuple(a for a in ALL if a in actions)
    if not ordered or len(ordered) != len(actions):
        raise UserError(f"actions: expected some of {ALL}, each at most once, found {tuple(actions)}")
    return ordered


def chosen(policy: Float[Array, "*b c actions"], actions: Sequence[str], action: str) -> Float[Array, "*b c"]:
    """1[action] of Eqs. 3 and 5; 0 where the policy can't choose it."""
    if action not in actions:
        return jnp.zeros_like(policy[..., 0])
    return policy[..., actions.index(action)]
