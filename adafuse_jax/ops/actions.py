"""What a policy can decide for a channel of a frame."""

import enum
from collections.abc import Sequence

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
        UserError: unless `actions` is a subset of skip, reuse, keep with at least two members, keep
            among them.
    """
    for name in actions:
        if name not in ALL:
            raise unknown("action", name, ALL)
    ordered = tuple(a for a in ALL if a in actions)
    if len(ordered) != len(actions) or len(ordered) < 2 or "keep" not in ordered:
        raise UserError(
            "actions: expected 'keep' and at least one of 'skip' and 'reuse', each once, "
            f"found {tuple(actions)}"
        )
    return ordered


def index(actions: Sequence[str], action: str) -> int | None:
    """Position of `action` on the policy's last axis; None where the policy can't choose it."""
    return actions.index(action) if action in actions else None
