"""A convolution and the norm after it as one convolution."""

import numpy as np
from flax import nnx
from jaxtyping import Float

from adafuse_jax.layers import BatchNorm


def folded(conv: nnx.Conv, bn: BatchNorm) -> tuple[Float[np.ndarray, "k k i o"], Float[np.ndarray, " o"]]:
    """Kernel and bias of one convolution that gives bn(conv(x)), by running statistics."""
    factor = np.asarray(bn.scale[...]) / np.sqrt(np.asarray(bn.var[...]) + bn.epsilon)
    return np.asarray(conv.kernel[...]) * factor, np.asarray(bn.bias[...]) - np.asarray(bn.mean[...]) * factor
