"""What a model's policies save: of its MACs in theory, and of the time as measured here."""

from adafuse_jax.bench.draws import Drawn
from adafuse_jax.bench.runs import Runs, prepare, take_turns

__all__ = ["Drawn", "Runs", "prepare", "take_turns"]
