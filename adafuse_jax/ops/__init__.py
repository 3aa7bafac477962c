"""The equations: pure functions on arrays, with explicit keys."""
