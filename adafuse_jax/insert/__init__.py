"""Temporal fusion for models that aren't ours."""

from adafuse_jax.insert.entry import insert_fusion as insert_fusion
