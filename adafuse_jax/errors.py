"""The one exception for what a user can put right."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: one line naming the thing, what was expected and what was found.

    `main.py` and the `adafuse` command print it without a traceback and exit with status 2.
    """


def unknown(kind: str, found: str, known: Iterable[str]) -> UserError:
    """The error for a name that isn't among `known`, with the nearest known one suggested."""
    known = sorted(known)
    near = difflib.get_close_matches(found, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return UserError(f"unknown {kind} {found!r}{hint}; known: {', '.join(known)}")
