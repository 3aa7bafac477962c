"""The command `adafuse`, a module for each of its concerns."""

from adafuse_jax.cli.command import guarded, main

__all__ = ["guarded", "main"]
