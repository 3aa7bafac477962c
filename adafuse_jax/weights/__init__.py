"""Weights in and out."""

from adafuse_jax.weights.published import from_torch as from_torch
