"""AdaFuse in JAX and Flax: keep, reuse or skip each channel of each frame."""

__version__ = "0.1.0"
