"""AdaFuse in JAX and Flax: keep, reuse or skip each channel of each frame."""

__version__ = "0.1.0"

from adafuse_jax import flops as flops
from adafuse_jax import layers as layers
from adafuse_jax import linen as linen
from adafuse_jax import weights as weights
from adafuse_jax.insert import insert_fusion as insert_fusion
from adafuse_jax.models.zoo import create_model as create_model
from adafuse_jax.models.zoo import list_models as list_models
