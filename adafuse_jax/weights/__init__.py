"""Weights in and out."""

from adafuse_jax.weights.card import Card as Card
from adafuse_jax.weights.files import load as load
from adafuse_jax.weights.files import read as read
from adafuse_jax.weights.files import save as save
from adafuse_jax.weights.fit import from_torch as from_torch
from adafuse_jax.weights.fit import to_torch as to_torch
